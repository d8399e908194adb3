"""Obstacles from points: ground, clusters, tracks, free space, the path ahead."""
