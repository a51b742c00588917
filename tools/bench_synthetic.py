#!/usr/bin/env python
"""Measure how fast the synthetic world is drawn: images per second of one core, JPEG encoding included.

Example:
    python tools/bench_synthetic.py --samples 10 --scenes 3

It records key frames in this process (six images and a LiDAR sweep each) after a first one that compiles the kernels.
CPU time is what counts; wall-clock time is printed beside it, and the two differ on a busy machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2

from perception.synthetic.recorder import record_sample
from perception.synthetic.rig import CAMERAS
from perception.synthetic.scene import SceneSpec, build_scene


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=2, help="scenes to draw from, 1 to 10")
    parser.add_argument("--samples", type=int, default=10, help="key frames of each scene, 1 to 40")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 1 <= args.scenes <= 10 or not 1 <= args.samples <= 40:
        parser.error("--scenes must be in 1..10 and --samples in 1..40")
    cv2.setNumThreads(1)
    built = drawn = wall = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for index in range(args.scenes):
            start = time.process_time()
            scene = build_scene(SceneSpec(index=index, seed=args.seed, num_samples=40))
            built += time.process_time() - start
            record_sample(scene, 0, Path(folder))  # compiles, or loads the compiled kernels
            start, wall_start = time.process_time(), time.perf_counter()
            for k in range(args.samples):
                record_sample(scene, k * 40 // args.samples, Path(folder))
            drawn += time.process_time() - start
            wall += time.perf_counter() - wall_start
    images = args.scenes * args.samples * len(CAMERAS)
    print(
        f"{images} images of 704 x 396 with their LiDAR sweeps: {images / drawn:.1f} images/s/core "
        f"({drawn / images * 1e3:.1f} ms each; wall clock {images / wall:.1f} images/s); "
        f"building a scene {built / args.scenes:.2f} s"
    )


if __name__ == "__main__":
    main()
