"""Measures a graphics card: rows as data (rows.py), how each kind is measured, one runner, one
table.

Everything is made on the card from random numbers; nothing is downloaded. tools/card.sh starts it.
"""
