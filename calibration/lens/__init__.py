"""Intrinsics from pictures of a board: views, estimate, uncertainty, guidance."""
