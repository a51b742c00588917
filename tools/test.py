"""Score a model, e.g. python tools/test.py CONFIG --checkpoint CKPT."""

import sys

from perception.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
