"""What is fuzzed, a file a part of the program. Importing this package registers all of it."""

from tests.fuzz.targets import imports, models, recordings, sensors, settings, transport

__all__ = ["imports", "models", "recordings", "sensors", "settings", "transport"]
