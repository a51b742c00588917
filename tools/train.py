"""Train a model, e.g. python tools/train.py CONFIG --work-dir DIR --cfg-options key=value."""

import sys

from perception.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
