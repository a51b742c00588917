"""Fixtures that several packages' tests share."""

from pathlib import Path

import pytest

# `import mmdet3d` needs mmcv's compiled module, which this import stands in for.
import perception  # noqa: F401
from tests.parity import require

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_root() -> Path:
    """Folder of real reference data beside the repository; tests that need it are skipped elsewhere."""
    root = _REPOSITORY.parent / "shared"
    if not (root / "data").is_dir():
        pytest.skip(f"the reference data is not at {root}")
    return root


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    """Folder of the official code's numbers; tests that need it are skipped where it is not."""
    return require(".")


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic nuScenes root: one scene of mini_train, one of mini_val, four samples each. Read only."""
    from perception.synthetic import synthesize

    root = tmp_path_factory.mktemp("synthetic") / "nuscenes"
    synthesize(root, num_scenes=2, seed=0, samples_per_scene=4)
    return root
