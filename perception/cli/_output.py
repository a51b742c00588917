"""How verbs print their results."""

import json
import sys
from collections.abc import Mapping
from typing import Any

HEADLINES = ("NDS", "mAP", "mIoU", "mATE", "mASE", "mAOE", "mAVE", "mAAE")


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print headline scores, one per line; the rest is in the run folder's JSON."""
    for name in HEADLINES:
        if name in metrics:
            print(f"{name:5s} {metrics[name]:.4f}")
    if metrics.get("comparable") is False or metrics.get("seg_comparable") is False:
        print("These scores are of a subset and not comparable with published ones.")


def print_json(value: Any) -> None:
    """Print JSON for other programs."""
    json.dump(value, sys.stdout, indent=2, sort_keys=True)
    print()
