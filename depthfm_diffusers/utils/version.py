"""The package's version, the only place that has it."""

__version__ = "0.4.0"
