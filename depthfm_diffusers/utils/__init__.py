"""Files, optional and lazy imports, error messages, the version."""
