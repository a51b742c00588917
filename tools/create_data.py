"""Build the index of a nuScenes root, e.g. python tools/create_data.py nuscenes --root-path DIR --version v1.0-mini."""

import argparse
import sys

from perception.cli.main import main


def parse_args() -> argparse.Namespace:
    """MM-style arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=("nuscenes",), help="on-disk format")
    parser.add_argument("--root-path", required=True, help="folder that holds v1.0-*/ and samples/")
    parser.add_argument("--version", help="e.g. v1.0-trainval; default the only one there is")
    parser.add_argument("--out-dir", help="folder for the index; default ROOT/perception_index")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_args()
    options = [("--version", args.version), ("--out", args.out_dir)]
    given = [word for name, value in options if value is not None for word in (name, value)]
    sys.exit(main(["data", "prepare", args.root_path, *given]))
