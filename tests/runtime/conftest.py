"""Export folders that the runtime's tests share. Read only."""

import pytest

from tests.runtime.toy_export import write_bevformer, write_fcos


@pytest.fixture(scope="session")
def rig_export(tmp_path_factory):
    return write_bevformer(tmp_path_factory.mktemp("export") / "rig")


@pytest.fixture(scope="session")
def image_export(tmp_path_factory):
    return write_fcos(tmp_path_factory.mktemp("export") / "images")
