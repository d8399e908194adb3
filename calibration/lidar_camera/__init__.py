"""Lidar (or depth camera) to camera, from views of one board."""
