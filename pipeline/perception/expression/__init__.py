"""Faces and voices: detected, tracked, classified, judged by quality, fused."""
