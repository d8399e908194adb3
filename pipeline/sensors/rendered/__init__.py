"""A small street drive with exact truth, rendered: the demo of the scene, and its tests."""
