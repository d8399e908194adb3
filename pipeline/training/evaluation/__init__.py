"""Figures of classifiers, and studies of what degrades them."""
