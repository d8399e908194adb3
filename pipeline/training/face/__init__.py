"""The face-expression network."""
