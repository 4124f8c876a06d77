"""The commands of `depthfm`, one module each.

Of every module, `add_parser` defines the arguments and imports nothing heavy; the function that runs the command
imports what it needs.
"""
