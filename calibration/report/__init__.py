"""The HTML page about a calibration: charts, overlays."""
