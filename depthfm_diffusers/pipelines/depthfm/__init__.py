"""From images to depth maps."""
