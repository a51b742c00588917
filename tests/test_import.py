"""What ``import perception`` does, and how ``mmcv._ext`` is found. Each case in a fresh interpreter."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, *paths: Path) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def make_mmcv(folder: Path, *, with_extension: bool) -> Path:
    (folder / "mmcv").mkdir(parents=True)
    (folder / "mmcv" / "__init__.py").write_text("")
    if with_extension:
        (folder / "mmcv" / "_ext.py").write_text("origin = 'compiled'\n")
    return folder


def test_import_is_light():
    out = run_python("""
        import sys
        import perception
        import perception.ops
        print(perception.__version__)
        print([m for m in sys.modules if m.split(".")[0] in ("torch", "mmcv", "mmengine", "mmdet", "numpy")])
    """)
    assert out.split("\n")[:2] == ["0.1.0", "[]"]


def test_finder_is_last_and_installed_once():
    out = run_python("""
        import importlib, sys
        import perception
        from perception.ops.mmcv_finder import MMCVExtFinder, install
        importlib.reload(perception)
        install()
        print([isinstance(f, MMCVExtFinder) for f in sys.meta_path].count(True))
        print(isinstance(sys.meta_path[-1], MMCVExtFinder))
    """)
    assert out.split() == ["1", "True"]


def test_compiled_extension_is_left_alone(tmp_path):
    folder = make_mmcv(tmp_path, with_extension=True)
    code = """
        import sys
        import perception
        from perception.ops.mmcv_finder import uses_fallback
        before = uses_fallback()
        import mmcv._ext
        print(mmcv._ext.origin, before, uses_fallback(), hasattr(mmcv._ext, "nms"), "torch" in sys.modules)
    """
    assert run_python(code, folder).split() == ["compiled", "False", "False", "False", "False"]


def test_fallback_is_served_without_an_extension(tmp_path):
    folder = make_mmcv(tmp_path, with_extension=False)
    code = """
        import perception
        from perception.ops.mmcv_finder import uses_fallback
        before = uses_fallback()
        import mmcv._ext
        print(before, uses_fallback(), mmcv._ext.nms.__module__, hasattr(mmcv._ext, "__path__"))
    """
    assert run_python(code, folder).split() == ["True", "True", "perception.ops.mmcv_ext.nms", "False"]


def test_other_missing_modules_stay_missing(tmp_path):
    folder = make_mmcv(tmp_path, with_extension=False)
    code = """
        import perception
        try:
            import mmcv._other
        except ModuleNotFoundError as error:
            print(error.name)
    """
    assert run_python(code, folder).split() == ["mmcv._other"]


def test_openmmlab_packages_import():
    out = run_python("""
        import perception
        import mmcv.ops, mmdet, mmdet3d, mmdet3d.structures, mmdet3d.evaluation, mmdet.models, mmdet3d.models
        print(mmcv.ops.get_compiling_cuda_version() != "")
    """)
    assert out.split()[-1] == "True"


def test_mmengine_leaves_deepspeed_alone(tmp_path):
    """Its import takes seconds and prints, so only the strategy that needs it does it."""
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text("print('imported')\n")
    out = run_python(
        """
        import importlib, sys
        import perception
        from perception.utils.mmengine_finder import DeepSpeedHider, install
        install()
        print([isinstance(f, DeepSpeedHider) for f in sys.meta_path].count(True))
        from mmengine._strategy.deepspeed import deepspeed
        print(deepspeed, "deepspeed" in sys.modules)
        import deepspeed
        """,
        tmp_path,
    )
    assert out.split() == ["1", "None", "False", "imported"]
