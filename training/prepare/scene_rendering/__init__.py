"""Random scenes, and their rendering in Blender."""
