"""Draw a data set with its ground truth, e.g. python tools/browse_dataset.py CONFIG --out DIR."""

import sys

from perception.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["browse", *sys.argv[1:]]))
