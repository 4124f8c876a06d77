"""Depth of video clips: reading, steady prediction, and the files that come out."""
