"""Score a model, e.g. python tools/test.py CONFIG CHECKPOINT."""

import sys

from perception.cli.main import main

if __name__ == "__main__":
    words = sys.argv[1:]
    if len(words) > 1 and not words[1].startswith("-"):
        words.insert(1, "--checkpoint")  # MM style: CONFIG CHECKPOINT
    sys.exit(main(["test", *words]))
