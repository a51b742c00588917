"""The small world that all tests share (two scenes, four samples each), as the devkit and as this package see it."""

from __future__ import annotations

from pathlib import Path

import pytest
from nuscenes.nuscenes import NuScenes

from perception.synthetic.scene import Scene, SceneSpec, build_scene

NUM_SAMPLES = 4


@pytest.fixture(scope="session")
def world(synthetic_root: Path) -> Path:
    return synthetic_root


@pytest.fixture(scope="session")
def nusc(world: Path) -> NuScenes:
    return NuScenes("v1.0-mini", str(world), verbose=False)


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    return [build_scene(SceneSpec(index=i, seed=0, num_samples=NUM_SAMPLES)) for i in range(2)]
