"""The nodes that a YAML may name in `use:`, one a file."""
