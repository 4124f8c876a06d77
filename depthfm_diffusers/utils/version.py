"""The package's version; nothing else in the repository states it."""

__version__ = "0.6.0"
