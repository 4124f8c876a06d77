"""The commands of `depthfm`, one module each: what it does, and its arguments."""
