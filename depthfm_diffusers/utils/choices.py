"""The names that settings choose from, apart from what they mean: the command line lists them without torch."""

CONTROL_MODES = ("disparity", "depth")
SAVED_KINDS = ("depth", "metres", "normals", "mesh", "obj", "points", "exr", "stereo")
COMPLETION_METHODS = ("auto", "trained", "optimize")
DTYPES = ("float32", "float16", "bfloat16")
# In what the frames of a predicted clip are written, beside the video.
CLIP_FRAME_FORMATS = ("png", "exr", "npz")
