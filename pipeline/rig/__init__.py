"""Intrinsics, poses and time offsets of a set of sensors, and their files."""
