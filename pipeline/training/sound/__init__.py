"""The sound-event network."""
