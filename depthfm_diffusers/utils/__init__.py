"""Files and the version."""
