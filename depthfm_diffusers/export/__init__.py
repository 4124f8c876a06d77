"""Depth maps as files."""
