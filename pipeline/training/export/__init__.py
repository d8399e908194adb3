"""Trained networks → ONNX files, their precisions, and their comparison with torch."""
