"""How messages lie in an MCAP file."""
