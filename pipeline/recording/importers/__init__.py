"""Other people's recordings → ours, one format a file."""
