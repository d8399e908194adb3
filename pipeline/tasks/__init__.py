"""The tasks that a YAML may name in `task:`, one a file."""
