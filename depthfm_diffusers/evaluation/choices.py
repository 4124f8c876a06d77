"""Names that settings of evaluations are chosen from, and of the reports; importing them loads nothing else."""

ALIGNMENT_SPACES = ("none", "depth", "log", "disparity")
# The settings of `depth_normalization.NORMALIZATIONS`; the first is the default.
DEPTH_NORMALIZATIONS = ("depthfm", "diff2flow")
# What the values of stored predictions are, each up to a positive factor and an offset.
PREDICTION_FORMS = ("depth", "log", "disparity")
# A field of benchmark files and reports: another way to fit is another protocol.
ALIGNMENT_METHODS = ("least_squares",)
CONDITIONS = ("depth", "none", "shuffled")
# Ways to score one set of predictions, each with its own alignment and its own pixels: see `runs.protocols`.
PROTOCOLS = ("marigold", "ppd")
PROTOCOL_CHOICES = (*PROTOCOLS, "all")
# The space of the alignment of `ppd`, beside `ALIGNMENT_SPACES`: log(depth + 1).
LOG_PLUS_ONE = "log_plus_one"
EVALUATION_FORMAT = "depthfm evaluate, 1"
PROTOCOLS_FORMAT = "depthfm evaluate by protocols, 1"
ADHERENCE_FORMAT = "depthfm adherence, 1"
COMPARISON_FORMAT = "depthfm compare, 1"
