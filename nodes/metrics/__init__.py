"""The run's health over HTTP, without a page: its node (metrics.py)."""

from nodes.metrics.metrics import Metrics

__all__ = ["Metrics"]
