"""What is fuzzed, a file a part of the program. Importing this package registers all of it."""

from tests.fuzz.targets import recordings, settings, transport

__all__ = ["recordings", "settings", "transport"]
