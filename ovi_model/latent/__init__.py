"""Lengths and sizes, the joint latent, and what is held of it."""
