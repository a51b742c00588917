"""Writing a whole world: scenes in parallel, tables, maps, and the guard around the output folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2

from perception.synthetic.map_expansion import build_expansion, draw_mask
from perception.synthetic.names import SCENE_NAMES
from perception.synthetic.output import FORMAT, claim, publishing
from perception.synthetic.recorder import Sample, record_sample
from perception.synthetic.road import Road
from perception.synthetic.scene import Scene, SceneSpec, build_scene
from perception.synthetic.tables import RecordedScene, build_tables, mask_filename
from perception.synthetic.workers import count_workers, run_tasks
from perception.utils import Progress, fsync_dir, write_json_atomic

VERSION = "v1.0-mini"
MAX_SAMPLES = 40
BYTES_PER_SAMPLE = 700_000  # six images and a sweep, a generous estimate


def _check(num_scenes: int, seed: int, num_workers: int | None, samples_per_scene: int) -> None:
    for name, value, low, high, hint in (
        (
            "num_scenes",
            num_scenes,
            1,
            len(SCENE_NAMES),
            "the official mini split names ten scenes; use another seed and folder for more",
        ),
        (
            "samples_per_scene",
            samples_per_scene,
            2,
            MAX_SAMPLES,
            "key frames are 0.5 s apart, a scene lasts 20 s",
        ),
        ("seed", seed, 0, 2**31 - 1, "any number in this range gives a world of its own"),
        ("num_workers", 1 if num_workers is None else num_workers, 1, 256, "leave it out to use all cores"),
    ):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, found {value!r} of type {type(value).__name__}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be in {low}..{high}, found {value}: {hint}")


def synthesize(
    out: str | Path,
    *,
    num_scenes: int = 10,
    seed: int = 0,
    num_workers: int | None = None,
    samples_per_scene: int = 40,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a synthetic world as a complete nuScenes `v1.0-mini` database.

    The files are made in a folder beside `out` and renamed at the end, so `out` is either absent, the old world or
    the whole new one. A finished world with the same parameters is kept. The content depends on `seed` and
    `samples_per_scene` only: not on the number of workers, and a scene is the same in a world of two as of ten.
    Scenes come in the order of `names.SCENE_NAMES`, in which the second is of mini_val, so that any world of two or
    more scenes has both splits (one scene: mini_train only).

    Args:
        out: folder to write.
        num_scenes: 1 to 10.
        seed: the world's seed, >= 0.
        num_workers: processes; None takes one per available core.
        samples_per_scene: key frames per scene at 2 Hz, 2 to 40.
        overwrite: replace a synthetic world with other parameters. Nothing else is ever replaced.
        progress: report progress on standard error.

    Returns:
        The folder written (or kept), as given.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        DataError: `out` is something else, holds another world, or the disk is full.

    Example:
        >>> root = synthesize("data/nuscenes-synthetic", num_scenes=2, samples_per_scene=4)  # doctest: +SKIP
    """
    _check(num_scenes, seed, num_workers, samples_per_scene)
    out = Path(out)
    parameters = {
        "format": FORMAT,
        "version": VERSION,
        "num_scenes": num_scenes,
        "seed": seed,
        "samples_per_scene": samples_per_scene,
    }
    partial = claim(
        out, parameters, overwrite=overwrite, need=num_scenes * samples_per_scene * BYTES_PER_SAMPLE
    )
    if partial is None:
        if progress:
            print(f"{out}: a complete world with these parameters exists; kept", file=sys.stderr)
        return out
    workers = count_workers(num_workers, num_scenes * samples_per_scene)
    specs = [SceneSpec(index=i, seed=seed, num_samples=samples_per_scene) for i in range(num_scenes)]
    bar = Progress("Synthesizing", total=num_scenes * samples_per_scene, unit="samples", is_enabled=progress)
    with publishing(partial, out, parameters):
        recorded, roads = _record(specs, partial, workers, bar)
        _write_tables(partial, recorded, roads)
    bar.close()
    return out


_built: dict[SceneSpec, Scene] = {}


def _scene(spec: SceneSpec) -> Scene:
    """Build a scene, or take the one built last in this process."""
    if spec not in _built:
        _built.clear()
        _built[spec] = build_scene(spec)
    return _built[spec]


def _record_chunk(
    spec: SceneSpec, first: int, last: int, root: str
) -> tuple[SceneSpec, list[Sample], list[tuple[str, tuple[float, float, float]]], Road, str]:
    cv2.setNumThreads(1)
    scene = _scene(spec)
    samples = [record_sample(scene, k, Path(root)) for k in range(first, last)]
    text = (
        f"Synthetic: {scene.lighting.name}, {scene.road.lanes[0]} + {scene.road.lanes[1]} lanes, "
        f"{len(scene.road.side_roads)} side roads, {len(scene.road.crossing_s)} crossings"
    )
    return spec, samples, [(a.category, a.size) for a in scene.actors], scene.road, text


def _chunks(specs: list[SceneSpec], workers: int) -> list[tuple[SceneSpec, int, int]]:
    """Whole scenes where there are enough of them for all workers, else pieces of ten samples."""
    size = specs[0].num_samples if len(specs) >= 2 * workers or workers == 1 else 10
    return [(s, k, min(k + size, s.num_samples)) for s in specs for k in range(0, s.num_samples, size)]


def _record(
    specs: list[SceneSpec], root: Path, workers: int, bar: Progress
) -> tuple[list[RecordedScene], list[tuple[SceneSpec, Road]]]:
    samples: dict[SceneSpec, list[Sample]] = {spec: [] for spec in specs}
    rest: dict[SceneSpec, tuple[list[tuple[str, tuple[float, float, float]]], Road, str]] = {}
    tasks = [(*chunk, str(root)) for chunk in _chunks(specs, workers)]
    for spec, done, actors, road, text in run_tasks(_record_chunk, tasks, workers):
        samples[spec] += done
        rest[spec] = (actors, road, text)
        bar.advance(len(done))
    recorded = [
        RecordedScene(s, rest[s][0], sorted(samples[s], key=lambda x: x.index), rest[s][2]) for s in specs
    ]
    return recorded, [(s, rest[s][1]) for s in specs]


def _write_tables(root: Path, recorded: list[RecordedScene], roads: list[tuple[SceneSpec, Road]]) -> None:
    (root / VERSION).mkdir(parents=True, exist_ok=True)
    for name, rows in build_tables(recorded).items():
        write_json_atomic(root / VERSION / f"{name}.json", rows, indent=0)
    (root / "maps" / "expansion").mkdir(parents=True, exist_ok=True)
    for location in dict.fromkeys(spec.location for spec, _ in roads):
        here = [(s, r) for s, r in roads if s.location == location]
        text = json.dumps(build_expansion(location, here), separators=(",", ":"), allow_nan=False)
        (root / "maps" / "expansion" / f"{location}.json").write_text(text + "\n", encoding="utf-8")
        ok, png = cv2.imencode(".png", draw_mask(here))
        if not ok:
            raise OSError(f"OpenCV could not encode the map mask of {location}")
        (root / mask_filename(location)).write_bytes(png.tobytes())
    fsync_dir(root)
