"""Prompts of two towers."""
