"""Latents to frames and sound of one length."""
