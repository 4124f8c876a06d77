"""Names that settings of evaluations are chosen from, and of the reports; importing them loads nothing else."""

ALIGNMENT_SPACES = ("none", "depth", "log", "disparity")
# What the values of stored predictions are, each up to a positive factor and an offset.
PREDICTION_FORMS = ("depth", "log", "disparity")
# A field of benchmark files and reports: another way to fit is another protocol.
ALIGNMENT_METHODS = ("least_squares",)
CONDITIONS = ("depth", "none", "shuffled")
EVALUATION_FORMAT = "depthfm evaluate, 1"
ADHERENCE_FORMAT = "depthfm adherence, 1"
COMPARISON_FORMAT = "depthfm compare, 1"
