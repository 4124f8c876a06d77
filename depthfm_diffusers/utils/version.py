"""The package's version; nothing else in the repository states it."""

__version__ = "0.7.0"
