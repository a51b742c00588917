"""Presence of files, looked up folder by folder: one listing instead of a system call per file."""

import os
from collections.abc import Iterable
from pathlib import Path

from perception.datasets._tables import Problem, Record


def missing_files(root: str | Path, records: Iterable[Record]) -> list[Problem]:
    """sample_data records whose file is absent.

    Args:
        root: the nuScenes root; filenames are relative to it.
        records: sample_data records.
    """
    root = Path(root)
    listings: dict[str, set[str]] = {}
    problems = []
    for record in records:
        folder, name = os.path.split(record["filename"])
        if folder not in listings:
            listings[folder] = file_names(root / folder)
        if name not in listings[folder]:
            problems.append(
                Problem(
                    f"the file of sample {record['sample_token']} is missing; unpack the archive that holds it "
                    "(nuScenes' parts all go into the same root), or fix the root",
                    table="sample_data",
                    token=record["token"],
                    path=str(root / record["filename"]),
                )
            )
    return problems


def file_names(folder: Path) -> set[str]:
    """Names of what lies in a folder; none where there is no such folder."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}
