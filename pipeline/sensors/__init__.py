"""Devices and media files: cameras, sound cards, lidars, RealSense, the rendered test drive."""
