"""Model folders and the authors' checkpoints: reading, checking, converting, saving."""
