"""The verbs of the command line, written out so that a lost one is noticed."""

VERBS = (
    "train",
    "test",
    "predict",
    "verify",
    "pseudo-label",
    "compare",
    "data",
    "browse",
    "check",
    "doctor",
    "config",
    "convert-checkpoint",
    "export",
    "visualize",
    "report",
    "bench",
)
SUBVERBS = {
    "data": ("synthesize", "prepare", "verify"),
    "config": ("ls", "show", "diff"),
    "bench": ("model", "data", "balance", "comm", "export"),
}
