"""The web page: its node (dashboard.py), and the parts of the page beside it."""

from nodes.dashboard.dashboard import Dashboard

__all__ = ["Dashboard"]
