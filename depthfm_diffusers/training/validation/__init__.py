"""Scores and pictures during training."""
