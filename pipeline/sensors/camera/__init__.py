"""Live cameras: USB, MJPEG over HTTP, network video."""
