"""ONNX models on TensorRT or ONNX Runtime: chosen, built, compared, cached."""
