"""The flow's time grid and its steps."""
