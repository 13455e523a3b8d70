"""A clip to look at."""
