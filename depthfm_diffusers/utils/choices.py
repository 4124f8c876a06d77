"""The names that settings choose from, apart from what they mean: the command line lists them without torch."""

CONTROL_MODES = ("disparity", "depth")
DTYPES = ("float32", "float16", "bfloat16")
