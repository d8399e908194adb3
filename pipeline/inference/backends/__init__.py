"""The backends that `backend:` may name, one a file."""
