"""The networks that are trained, and where they start from."""
