"""Estimates a rig: intrinsics, poses and time offsets of its sensors. The rig itself belongs to `pipeline`.

Never imported by `pipeline`, and imports no node.
"""
