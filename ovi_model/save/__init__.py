"""Frames and sound to one file."""
