"""Draw a run's predictions, e.g. python tools/visualize.py RUN."""

import sys

from perception.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["visualize", *sys.argv[1:]]))
