"""Calibration boards: what they are, where their corners lie in a picture, how they are printed."""
