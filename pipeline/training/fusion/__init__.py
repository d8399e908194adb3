"""Fusion of modalities: networks, families, training, evaluation."""
