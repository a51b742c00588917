"""nuScenes' tables read as plain JSON, with checks that name the table, the token and the field.

The devkit is not used here: on the full set it takes minutes, and a broken table ends in a bare KeyError.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception.utils import DataError
from perception.utils.json_stream import JsonStream

Record = dict[str, Any]

REQUIRED_FIELDS: dict[str, frozenset[str]] = {
    "category": frozenset({"name"}),
    "attribute": frozenset({"name"}),
    "visibility": frozenset(),
    "sensor": frozenset({"channel", "modality"}),
    "calibrated_sensor": frozenset({"sensor_token", "translation", "rotation", "camera_intrinsic"}),
    "log": frozenset({"location"}),
    "map": frozenset({"log_tokens", "filename"}),
    "scene": frozenset({"name", "log_token"}),
    "sample": frozenset({"timestamp", "scene_token", "prev", "next"}),
    "instance": frozenset({"category_token"}),
    "sample_data": frozenset(
        {"sample_token", "calibrated_sensor_token", "ego_pose_token", "is_key_frame", "filename", "timestamp"}
    ),
    "ego_pose": frozenset({"translation", "rotation"}),
    "sample_annotation": frozenset(
        {
            "sample_token",
            "instance_token",
            "attribute_tokens",
            "translation",
            "size",
            "rotation",
            "prev",
            "next",
            "num_lidar_pts",
            "num_radar_pts",
        }
    ),
}
"""The 13 tables, and the fields besides `token` that this project reads. They are read in this order: a table's links
lead to earlier ones, but for the poses, of which only those of key frames are kept."""

_OPTIONAL_FIELDS = {"sample_data": frozenset({"height", "width"})}

LINKS: tuple[tuple[str, str, str], ...] = (
    ("instance", "category_token", "category"),
    ("calibrated_sensor", "sensor_token", "sensor"),
    ("scene", "log_token", "log"),
    ("sample", "scene_token", "scene"),
    ("sample", "prev", "sample"),
    ("sample", "next", "sample"),
    ("sample_data", "sample_token", "sample"),
    ("sample_data", "calibrated_sensor_token", "calibrated_sensor"),
    ("sample_data", "ego_pose_token", "ego_pose"),
    ("sample_annotation", "sample_token", "sample"),
    ("sample_annotation", "instance_token", "instance"),
    ("sample_annotation", "attribute_tokens", "attribute"),
    ("sample_annotation", "prev", "sample_annotation"),
    ("sample_annotation", "next", "sample_annotation"),
    ("map", "log_tokens", "log"),
)
"""(table, field, table that the field's token or tokens belong to)."""

_OPTIONAL_LINKS = frozenset({"prev", "next"})
_MAY_BE_EMPTY = frozenset({"attribute", "visibility", "instance", "sample_annotation", "map"})


@dataclass(frozen=True)
class Problem:
    """One defect of a database.

    Args:
        message: what is wrong, and what to do.
        table: the table it is in, or "" where it is in none.
        token: token of the record, or "".
        path: file or folder, or "".
    """

    message: str
    table: str = ""
    token: str = ""
    path: str = ""

    def __str__(self) -> str:
        place = " ".join(part for part in (self.table, self.token) if part)
        return (f"{place}: " if place else "") + self.message + (f" [{self.path}]" if self.path else "")


@dataclass(frozen=True)
class Database:
    """Tables of one version, with the fields of `REQUIRED_FIELDS` only.

    `sample_data` holds the key frames of cameras and LiDAR, `ego_pose` their poses: a twentieth of the full set's.

    Args:
        root: the nuScenes root.
        version: name of the tables' folder, e.g. v1.0-mini.
        tables: table name → token → record, in the file's order.
    """

    root: Path
    version: str
    tables: dict[str, dict[str, Record]]

    def __getitem__(self, table: str) -> dict[str, Record]:
        return self.tables[table]

    def key_frames(self) -> dict[str, dict[str, Record]]:
        """Sample token → sensor channel → sample_data record."""
        frames: dict[str, dict[str, Record]] = {token: {} for token in self["sample"]}
        for record in self["sample_data"].values():
            calibration = self["calibrated_sensor"][record["calibrated_sensor_token"]]
            channel = self["sensor"][calibration["sensor_token"]]["channel"]
            frames[record["sample_token"]][channel] = record
        return frames

    def annotations(self) -> dict[str, list[Record]]:
        """Sample token → its annotations, in the table's order."""
        grouped: dict[str, list[Record]] = {token: [] for token in self["sample"]}
        for record in self["sample_annotation"].values():
            grouped[record["sample_token"]].append(record)
        return grouped

    def location(self, scene: Record) -> str:
        """Name of the map that a scene lies on."""
        return self["log"][scene["log_token"]]["location"]


def find_version(root: str | Path, version: str | None) -> str:
    """The version to read: the one asked for, or the only one there is.

    Raises:
        DataError: no such folder, no nuScenes in it, no such version, or several versions and none chosen.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            "there is no such folder; give the folder that holds nuScenes' v1.0-* and samples folders, or make a "
            "synthetic world there with `perception data synthesize --out FOLDER`.",
            path=root,
        )
    versions = sorted(path.parent.name for path in root.glob("*/sample.json"))
    if version is not None and (root / version).is_dir():
        return version
    if not versions:
        raise DataError(
            "this folder holds no nuScenes database (no */sample.json); give the folder that contains v1.0-mini, "
            "v1.0-trainval or v1.0-test, or make a synthetic world with `perception data synthesize --out FOLDER`.",
            path=root,
        )
    if version is not None:
        raise DataError(
            f"there is no version {version!r} here; present: {', '.join(versions)}. Choose with --version.",
            path=root,
        )
    if len(versions) > 1:
        raise DataError(
            f"several versions are here: {', '.join(versions)}. Choose one with --version.", path=root
        )
    return versions[0]


def read_database(root: str | Path, version: str | None = None) -> tuple[Database | None, list[Problem]]:
    """Read and check all tables.

    Args:
        root: the nuScenes root.
        version: name of the tables' folder; None takes the only one there is.

    Returns:
        The database, or None where a table cannot be read or a field is missing; and the defects found.

    Raises:
        DataError: as `find_version`.
    """
    root = Path(root)
    version = find_version(root, version)
    problems: list[Problem] = []
    tables: dict[str, dict[str, Record]] = {}
    for table in REQUIRED_FIELDS:
        try:
            tables[table] = _read_table(root / version / f"{table}.json", table, tables, problems)
        except DataError as error:
            problems.append(Problem(error.message, table=table, path=error.path or ""))
    if problems:
        return None, problems
    problems += _dangling_tokens(tables)
    return Database(root=root, version=version, tables=tables), problems


def raise_first(problems: list[Problem]) -> None:
    """Raise the first defect as a `DataError`, with the number of the others.

    Raises:
        DataError: there is at least one defect.
    """
    if not problems:
        return
    others = len(problems) - 1
    tail = f" ({others} more; `perception data verify` lists all)" if others else ""
    first = problems[0]
    place = " ".join(part for part in (first.table, first.token) if part)
    raise DataError((f"{place}: " if place else "") + first.message + tail, path=first.path or None)


def _read_table(
    path: Path, table: str, tables: dict[str, dict[str, Record]], problems: list[Problem]
) -> dict[str, Record]:
    """Token → record of one table. Only records and fields that are needed are kept; defects go to `problems`.

    Raises:
        DataError: the file is missing or not readable.
    """
    if not path.is_file():
        raise DataError("the table is missing; unpack nuScenes' metadata archive again", path=path)
    kept: dict[str, Record] = {}
    counts: Counter[str] = Counter()
    fields = ("token", *sorted(REQUIRED_FIELDS[table] | _OPTIONAL_FIELDS.get(table, frozenset())))
    links = tuple((field, target) for source, field, target in LINKS if source == table)
    is_wanted = _filter(table, tables)
    known = {**tables, table: kept}
    num_records = 0
    for record in _stream(path):
        num_records += 1
        token = record.get("token")
        missing = REQUIRED_FIELDS[table] - record.keys()
        if token is None:
            problems.append(Problem("a record has no token", table=table))
        if missing:
            problems.append(
                Problem(f"missing field {', '.join(sorted(missing))}", table=table, token=str(token or ""))
            )
        if token is None or missing or not is_wanted(record):
            continue
        if token in kept:
            counts[token] += 1
            continue
        kept[token] = {field: record[field] for field in fields if field in record}
        _share_tokens(kept[token], links, known)
    problems += [
        Problem(f"the token occurs {count + 1} times; tokens must be unique", table=table, token=token)
        for token, count in counts.items()
    ]
    if not num_records:
        problems += _empty_table(table, path.parent.name)
    return kept


def _stream(path: Path) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            stream = JsonStream(file)
            if stream.peek() not in ("[", ""):
                raise DataError("the table must be a JSON list of objects", path=path)
            for record, _ in stream.array():
                if not isinstance(record, dict):
                    raise DataError("the table must be a JSON list of objects", path=path)
                yield record
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"the table is not readable JSON ({error}); unpack it again", path=path) from error


def _filter(table: str, tables: dict[str, dict[str, Record]]) -> Callable[[Record], bool]:
    """Which records of a table are needed; on the full set most of the millions are not."""
    if table == "sample_data":
        radars = {
            token
            for token, calibration in tables.get("calibrated_sensor", {}).items()
            if tables.get("sensor", {}).get(calibration["sensor_token"], {}).get("modality") == "radar"
        }
        return lambda record: record["is_key_frame"] and record["calibrated_sensor_token"] not in radars
    if table == "ego_pose" and "sample_data" in tables:
        used = {record["ego_pose_token"] for record in tables["sample_data"].values()}
        return lambda record: record["token"] in used
    return lambda record: True


def _share_tokens(
    record: Record, links: tuple[tuple[str, str], ...], tables: dict[str, dict[str, Record]]
) -> None:
    """Replace tokens by the equal strings of the tables they lead to: one string in memory instead of many."""
    for field, target in links:
        known, value = tables.get(target, {}), record[field]
        if isinstance(value, str) and value in known:
            record[field] = known[value]["token"]
        elif isinstance(value, list):
            record[field] = [known[link]["token"] if link in known else link for link in value]


def _empty_table(table: str, version: str) -> Iterator[Problem]:
    if table not in _MAY_BE_EMPTY:
        yield Problem("the table is empty", table=table)
    if table == "sample_annotation" and not version.endswith("test"):
        yield Problem(
            "the table is empty: there is nothing to train on or to evaluate against. Only a version whose name "
            "ends in 'test' may come without annotations; unpack the metadata again or choose another version",
            table=table,
        )


def _dangling_tokens(tables: dict[str, dict[str, Record]]) -> Iterator[Problem]:
    for table, field, target in LINKS:
        known = tables[target]
        for token, record in tables[table].items():
            value = record[field]
            links = value if isinstance(value, list) else [value]
            for link in links:
                if link not in known and not (link == "" and field in _OPTIONAL_LINKS):
                    yield Problem(
                        f"{field} is {link!r}, but table {target} has no such token; the tables do not belong "
                        "together: unpack the metadata again",
                        table=table,
                        token=token,
                    )
