"""Objects in pictures: detected, tracked, given a range by points."""
