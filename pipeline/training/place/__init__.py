"""The place network."""
