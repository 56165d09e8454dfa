"""Rooms of the pre-training recipe."""
