"""Frames in, aligned sets out: the aligner, its sync policies, and the log of what it decided."""
