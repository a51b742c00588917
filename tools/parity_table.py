#!/usr/bin/env python
"""Compare the model with numbers of the official code, and write the table fixture × quantity → largest error.

    python tools/parity_table.py [--folder ../shared/parity] [--out docs/results/parity.md]

The folder is one of parity fixtures (`.npz` with a `.json` beside it), or has them below `fixtures`; by default what
PERCEPTION_PARITY says. Exit code 0; 1 if an error is beyond its tolerance; 2 for a wrong option; 4 without fixtures.
"""

import argparse
import os
import sys
from pathlib import Path

from perception.engine.parity import compare_fixture, find_fixtures, read_fixture, render_table
from perception.utils import DataError

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "parity"
TITLE = "# Parity with the official code"
INTRO = """\
`python tools/parity_table.py`: the official code's weights and inputs in our model, with the switches of
`UpstreamCompat` that each fixture needs ([models](../models.md#upstreams-defects)). Each cell is the largest absolute
difference; of gradients it is relative to the array's maximum, of discrete quantities the number of unequal entries.
The tolerances are those that the fixtures' README recommends for a float32 re-implementation."""


def main() -> int:
    """Parse the options, compare, write."""
    parser = argparse.ArgumentParser(description="Compare the model with numbers of the official code.")
    folder = os.environ.get("PERCEPTION_PARITY", DEFAULT)
    parser.add_argument(
        "--folder", type=Path, default=folder, help="folder of fixtures (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="write the page there as well")
    options = parser.parse_args()
    try:
        comparisons = [compare_fixture(read_fixture(path)) for path in find_fixtures(options.folder)]
    except DataError as error:
        print(f"parity_table: error: {error}", file=sys.stderr)
        return 4
    table = render_table(comparisons)
    print(table, end="")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(f"{TITLE}\n\n{INTRO}\n\n{table}", encoding="utf-8")
    is_within = all(difference.is_within for compare in comparisons for difference in compare.differences)
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
