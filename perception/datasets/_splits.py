"""Which scenes belong to which split: nuScenes' official lists, and a version's own `splits.json`."""

import json
from collections.abc import Sequence

from perception.config import did_you_mean
from perception.datasets._tables import Database
from perception.utils import DataError, get_logger, name_some

VERSION_SPLITS = {"mini": ("mini_train", "mini_val"), "trainval": ("train", "val"), "test": ("test",)}
"""End of a version's name → its official splits."""


def scenes_of_splits(database: Database, splits: Sequence[str] | None) -> dict[str, list[str]]:
    """Scene tokens of each split, sorted by scene name.

    Args:
        database: tables of one version.
        splits: names of the splits; None takes the version's official ones and those of its `splits.json`. An official
            split of which no scene is present is then left out with a warning.

    Returns:
        split → tokens of its scenes that are present.

    Raises:
        DataError: an unknown split, one without a scene here, or nothing to index at all.
    """
    # The devkit's package takes seconds to import, and only this function needs it.
    from nuscenes.utils.splits import create_splits_scenes

    own = _own_splits(database)
    known: dict[str, list[str]] = {**own, **create_splits_scenes()}  # as the devkit: official names go first
    official = VERSION_SPLITS.get(database.version.rsplit("-", 1)[-1], ())
    names = tuple(splits) if splits is not None else tuple(dict.fromkeys((*official, *own)))
    if not names:
        raise DataError(
            f"version {database.version!r} ends in none of {', '.join(VERSION_SPLITS)} and has no splits.json; name "
            "the splits, or write splits.json as {split: [scene names]}.",
            path=database.root / database.version,
        )
    tokens = {record["name"]: token for token, record in database["scene"].items()}
    scenes: dict[str, list[str]] = {}
    for name in names:
        if name not in known:
            raise DataError(
                f"unknown split {name!r}.{did_you_mean(name, list(known))} Known: {', '.join(sorted(known))}.",
                path=database.root / database.version,
            )
        present = sorted(scene for scene in known[name] if scene in tokens)
        if present:
            scenes[name] = [tokens[scene] for scene in present]
        elif splits is not None:
            raise DataError(
                f"no scene of split {name!r} is in version {database.version}, which holds "
                f"{name_some(sorted(tokens))}.",
                path=database.root / database.version,
            )
        else:
            get_logger(__name__).warning(
                "no scene of split %s is in %s; no index written for it", name, database.version
            )
    if not scenes:
        raise DataError(
            f"no scene here belongs to {', '.join(names)}; present: {name_some(sorted(tokens))}. Scenes must carry "
            "nuScenes' own names, or be listed in splits.json.",
            path=database.root / database.version,
        )
    return scenes


def _own_splits(database: Database) -> dict[str, list[str]]:
    path = database.root / database.version / "splits.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not readable JSON ({error})", path=path) from error
    if not isinstance(content, dict) or not all(isinstance(scenes, list) for scenes in content.values()):
        raise DataError("splits.json must be an object {split: [scene names]}", path=path)
    return content
