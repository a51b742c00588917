"""The runtime where there is nothing but NumPy, onnxruntime and this package."""

import shutil
import subprocess
import sys
import textwrap
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from perception.runtime import Predictor
from tests.runtime.frames import make_frame

ROOT = Path(__file__).resolve().parents[2]
_FORBIDDEN = (
    "torch mmengine mmcv mmdet mmdet3d cv2 scipy nuscenes pyquaternion safetensors yaml onnx matplotlib PIL"
)

# What a vehicle's program does: no test helper is importable there.
_PROGRAM = """
    import sys
    import numpy as np
    from perception.runtime import Camera, Frame, ImagePredictor, Predictor

    export, image_export, given, out = sys.argv[1:]
    values = np.load(given)
    predictor = Predictor(export, num_threads=1)
    boxes = []
    for step in range(2):
        cameras = {
            name: Camera(
                image=values["images"][step, number],
                intrinsics=values["intrinsics"][number],
                camera2ego=values["camera2ego"][number],
                ego2global=values["camera_poses"][step, number],
            )
            for number, name in enumerate(predictor.manifest.cameras)
        }
        found = predictor.predict(
            Frame(
                cameras=cameras,
                lidar2ego=values["lidar2ego"],
                ego2global=values["ego2global"][step],
                timestamp=float(step),
            )
        )
        boxes.append(found.boxes_lidar)
    np.save(out, np.stack(boxes))
    print(ImagePredictor(image_export).predict(values["images"][0, 0]).seg_classes.shape)
    print(sorted(name for name in FORBIDDEN.split() if name in sys.modules))
"""


def save_frames(path: Path) -> list:
    frames = [make_frame(step, timestamp=float(step)) for step in range(2)]
    cameras = [list(frame.cameras.values()) for frame in frames]
    np.savez(
        path,
        images=np.array([[camera.image for camera in rig] for rig in cameras]),
        intrinsics=np.array([camera.intrinsics for camera in cameras[0]]),
        camera2ego=np.array([camera.camera2ego for camera in cameras[0]]),
        camera_poses=np.array([[camera.ego2global for camera in rig] for rig in cameras]),
        lidar2ego=frames[0].lidar2ego,
        ego2global=np.array([frame.ego2global for frame in frames]),
    )
    return frames


def run_program(python: Path, folder: Path, exports: tuple, *, first: str = "") -> None:
    frames = save_frames(folder / "frames.npz")
    code = first + f"FORBIDDEN = {_FORBIDDEN!r}\n" + textwrap.dedent(_PROGRAM)
    words = [str(export) for export in exports] + [str(folder / "frames.npz"), str(folder / "boxes.npy")]
    output = run([str(python), "-c", code, *words], folder)
    assert output.splitlines() == ["(4, 5)", "[]"]
    predictor = Predictor(exports[0], num_threads=1)
    expected = np.stack([predictor.predict(frame).boxes_lidar for frame in frames])
    np.testing.assert_allclose(np.load(folder / "boxes.npy"), expected, atol=1e-6)
    assert not np.array_equal(expected[0], expected[1])


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_but_numpy_and_onnxruntime_is_imported(rig_export, image_export, tmp_path):
    """Every other package is refused, in this environment."""
    block = f"""
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {_FORBIDDEN.split()!r}:
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Refuse())
        sys.path.insert(0, {str(ROOT)!r})
    """
    run_program(Path(sys.executable), tmp_path, (rig_export, image_export), first=textwrap.dedent(block))


@pytest.mark.slow
def test_in_an_environment_of_its_own(rig_export, image_export, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "perception", source / "perception", ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pins = [f"{name}=={metadata.version(name)}" for name in ("numpy", "onnxruntime")]
    run([*pip, *pins], tmp_path)
    run([*pip, "--no-deps", str(source)], tmp_path)
    listed = run([str(python), "-m", "pip", "list", "--format", "freeze"], tmp_path)
    installed = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert {"numpy", "onnxruntime", "perception-multitask"} <= installed
    assert not installed & set(_FORBIDDEN.lower().split())
    run_program(python, tmp_path, (rig_export, image_export))
    for export in (rig_export, image_export):
        output = run([str(python), "-m", "perception.runtime", "verify", str(export)], tmp_path)
        assert output.splitlines()[-1] == "verified"
