"""Write resized copies of the camera images that an index names; what is there and still right is left alone."""

import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import cv2

from perception import __version__
from perception.datasets._cache_files import MANIFEST, CacheSettings, read_manifest
from perception.datasets._image_copies import Outcome, Task, copy_of, make_copies
from perception.datasets._image_files import Size
from perception.datasets._packed import image_sizes
from perception.datasets.image_cache import CACHE_FOLDER
from perception.utils import DataError, Progress, write_json_atomic

_IMAGES_PER_TASK = 16
_IMAGES_PER_WORKER = 256
_NUM_ESTIMATED = 12
_DISK_BLOCK = 4096
_SECONDS_UNTIL_ABANDONED = 600.0
_NUM_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What a run has left on disk.

    Attributes:
        folder: of this size.
        num_images: copies in the folder.
        num_made: of these, made by this run.
        num_bytes: of all copies.
    """

    folder: Path
    num_images: int
    num_made: int
    num_bytes: int


def prepare_image_cache(
    root: str | Path,
    indexes: Sequence[str | Path],
    *,
    size: Size,
    cache_dir: str | Path | None = None,
    interpolation: Literal["bilinear", "area"] = "bilinear",
    image_format: Literal["jpeg", "bmp"] = "jpeg",
    quality: int = 95,
    num_workers: int | None = None,
    progress: bool = True,
) -> CacheReport:
    """Make copies of one size of all images that some indexes name, as `LoadMultiViewImages` reads them.

    A copy is made again where it is damaged, or where its original's size in bytes or time of change is not what it
    was. Each is written beside and renamed into place, so an interrupted run leaves whole copies only; the next run
    goes on from there. A damaged original does not stop the others.

    Args:
        root: the nuScenes root; image paths are relative to it.
        indexes: files that `prepare` wrote.
        size: width and height of the copies.
        cache_dir: where the folder `<width>x<height>` goes; default `<root>/perception_index/image_cache`.
        interpolation: as in the config's `ResizeMultiView`.
        image_format: "jpeg" or "bmp", which loses nothing and takes seven times the space.
        quality: of JPEGs, 1 to 100.
        num_workers: processes; None takes one per available core.
        progress: report progress on stderr.

    Raises:
        DataError: the images are smaller than the copies would be, the cache is there with other settings, the disk is
            too small, or originals are missing or damaged (all others are done by then).
        ValueError: an option is out of range.
    """
    settings = CacheSettings(
        size=size, interpolation=interpolation, image_format=image_format, quality=quality
    )
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}.")
    root = Path(root)
    parent = root / "perception_index" / CACHE_FOLDER if cache_dir is None else Path(cache_dir)
    folder = parent / settings.name
    tasks = list(_tasks(indexes, settings))
    old = read_manifest(folder)
    if old is not None and old[0].to_json() != settings.to_json():
        raise DataError(
            f"the image cache is there, made with {_words(old[0])}; this one would have {_words(settings)}. Give "
            "these options too, remove the folder, or make the other one elsewhere by --cache-dir.",
            path=folder,
        )
    folder.mkdir(parents=True, exist_ok=True)
    missing = _missing(folder, tasks, settings)
    _check_disk(root, folder, missing, settings)
    _remove_abandoned(folder)
    if old is None:
        _write_manifest(folder, settings, num_images=None, num_bytes=None, source_sizes=set())
    bar = Progress(f"Caching images at {settings.name}", total=len(tasks), unit="images", is_enabled=progress)
    outcome = Outcome()
    for part, num in _run(partial(make_copies, root, folder, settings), tasks, num_workers):
        outcome.num_made += part.num_made
        outcome.source_sizes |= part.source_sizes
        outcome.errors += part.errors
        bar.advance(num)
    bar.close()
    sizes = [entry.stat().st_size for entry in _files(folder) if not entry.name.startswith(".")]
    report = CacheReport(
        folder=folder, num_images=len(sizes), num_made=outcome.num_made, num_bytes=sum(sizes)
    )
    _write_manifest(
        folder,
        settings,
        num_images=report.num_images,
        num_bytes=report.num_bytes,
        source_sizes=outcome.source_sizes,
    )
    _raise(outcome.errors, len(tasks))
    return report


def _tasks(indexes: Sequence[str | Path], settings: CacheSettings) -> Iterator[Task]:
    """Each image once, in the order of the first index that names it."""
    seen: set[str] = set()
    for index in indexes:
        for name, size in image_sizes(index).items():
            if name in seen:
                continue
            seen.add(name)
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise DataError(
                    f"the index names an image outside its root, {name}; no cache holds it.", path=index
                )
            if size is not None and (size[0] < settings.size[0] or size[1] < settings.size[1]):
                raise DataError(
                    f"the images are {size[0]}×{size[1]}, smaller than the cache's {settings.name} would be; they need "
                    "no copy. Give a smaller size, the one that the config's ResizeMultiView has.",
                    path=name,
                )
            yield name, size


def _words(settings: CacheSettings) -> str:
    quality = f" {settings.quality}" if settings.image_format == "jpeg" else ""
    return f"{settings.image_format}{quality} and {settings.interpolation}"


# ---------------------------------------------------------------------------------------------------- all images


def _run(
    make: partial[Outcome], tasks: Sequence[Task], num_workers: int | None
) -> Iterator[tuple[Outcome, int]]:
    chunks = [tasks[start : start + _IMAGES_PER_TASK] for start in range(0, len(tasks), _IMAGES_PER_TASK)]
    # A process costs seconds of imports, as long as some hundred images take.
    workers = min(num_workers or len(os.sched_getaffinity(0)), math.ceil(len(tasks) / _IMAGES_PER_WORKER))
    if workers <= 1:
        for chunk in chunks:
            yield make(chunk), len(chunk)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once for all of them
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_init_worker) as pool:
        futures = {pool.submit(make, chunk): len(chunk) for chunk in chunks}
        try:
            for future in as_completed(futures):
                yield future.result(), futures[future]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _init_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process hears it, and ends its workers


def _missing(folder: Path, tasks: Sequence[Task], settings: CacheSettings) -> list[Task]:
    there = {entry.path for entry in _files(folder)}
    return [task for task in tasks if str(settings.path(folder, task[0])) not in there]


def _check_disk(root: Path, folder: Path, missing: Sequence[Task], settings: CacheSettings) -> None:
    """Compare what some copies take, times the number of those that are missing, with what is free."""
    sizes = []
    for task in missing[:: max(1, len(missing) // _NUM_ESTIMATED)][:_NUM_ESTIMATED]:
        try:
            content, _ = copy_of(root, task, settings)
        except DataError:
            continue  # told at the end, with all others
        sizes.append(math.ceil(len(content) / _DISK_BLOCK) * _DISK_BLOCK)
    if not sizes:
        return
    needed = len(missing) * sum(sizes) / len(sizes)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{len(missing)} copies at {settings.name} take about {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are "
            "free; make room, give another disk by --cache-dir, or a lower --cache-quality.",
            path=folder,
        )


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All files below a folder but the manifest."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(Path(entry.path))
            elif entry.name != MANIFEST:
                yield entry


def _remove_abandoned(folder: Path) -> None:
    """Remove what a killed run was writing; another one may be at work beside this one, so only what is old."""
    for entry in list(_files(folder)):
        is_temporary = entry.name.startswith(".") and ".tmp-" in entry.name
        if is_temporary and time.time() - entry.stat().st_mtime > _SECONDS_UNTIL_ABANDONED:
            Path(entry.path).unlink(missing_ok=True)


def _write_manifest(
    folder: Path,
    settings: CacheSettings,
    *,
    num_images: int | None,
    num_bytes: int | None,
    source_sizes: Iterable[Size],
) -> None:
    content = {
        **settings.to_json(),
        "num_images": num_images,
        "num_bytes": num_bytes,
        "source_sizes": sorted(list(size) for size in source_sizes),
        "versions": {"perception": __version__, "opencv": cv2.__version__},
    }
    write_json_atomic(folder / MANIFEST, content)


def _raise(errors: Sequence[DataError], num_images: int) -> None:
    if not errors:
        return
    paths = [str(error.path) for error in errors]
    others = [*paths[1:_NUM_LISTED], *(["…"] if len(paths) > _NUM_LISTED else [])]
    more = f" The others: {', '.join(others)}." if others else ""
    raise DataError(
        f"{len(errors)} of {num_images} images could not be copied, all others are in the cache. The first: "
        f"{errors[0].message}{more} `perception data verify` lists all defects of a root.",
        path=paths[0],
    )
