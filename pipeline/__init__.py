"""Sensorium: a streaming, real-time, multimodal perception pipeline.

    import pipeline
    for prediction in pipeline.subscribe("emotion"):
        print(prediction.label, prediction.missing)
"""

from pipeline.runs import subscribe

__all__ = ["subscribe"]
