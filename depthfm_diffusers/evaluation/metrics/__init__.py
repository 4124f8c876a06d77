"""Alignment of depth maps to the truth, and error measures."""
