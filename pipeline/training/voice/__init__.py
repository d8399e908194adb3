"""The voice-expression networks."""
