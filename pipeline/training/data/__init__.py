"""Data sets as their publishers lay them out, and one's own."""
