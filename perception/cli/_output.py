"""How verbs print their results."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

HEADLINES = ("NDS", "mAP", "AP", "AP50", "mIoU", "mAcc", "mATE", "mASE", "mAOE", "mAVE", "mAAE")


def say(text: str) -> None:
    """Print a line of result; of several ranks, the first one does."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(text)


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print headline scores, one per line; the rest is in the run folder's JSON."""
    for name in HEADLINES:
        if name in metrics:
            say(f"{name:5s} {metrics[name]:.4f}")
    if metrics.get("comparable") is False or metrics.get("seg_comparable") is False:
        say("These scores are of a subset and not comparable with published ones.")


def print_json(value: Any) -> None:
    """Print JSON for other programs."""
    json.dump(value, sys.stdout, indent=2, sort_keys=True)
    print()
