"""The page's server, and the points that it shows."""
