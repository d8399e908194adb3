"""Recordings: read, write, replay, verify, export, label, compare."""
