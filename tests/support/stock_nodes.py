"""Walks every node of core that takes a MODEL: what each changes of an Ovi clip, or says."""

from __future__ import annotations
