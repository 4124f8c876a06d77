"""Model folders, and conversion of the authors' checkpoints."""
