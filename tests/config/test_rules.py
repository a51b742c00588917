import ast
from pathlib import Path

import pytest

from perception.config import ConfigError, config_roots, load_config
from perception.config.rules import check_rules


def breaches(source):
    return check_rules(ast.parse(source), Path("c.py"))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os", "imports os"),
        ("from subprocess import run", "imports subprocess"),
        ("from torch import *", r"imports \* from torch"),
        ("from .base import x", "relative import outside"),
        ("def f(): pass", "uses def"),
        ("class A: pass", "uses class"),
        ("f = lambda: 1", "uses lambda"),
        ("for i in range(3): pass", "uses for"),
        ("if True: a = 1", "uses if"),
        ("__import__('os').system('true')", "calls __import__"),
        ("a = eval('1')", "calls eval"),
        ("a = open('x').read()", "calls open"),
        ("a = ().__class__.__bases__", "dunder names"),
        ("a = (b := 1)", "uses the := operator"),
        ("with open('x') as f: pass", "other than `with read_base"),
        ("with read_base():\n    import os", "other than relative imports"),
        (
            "with read_base():\n    from .a import *\nwith read_base():\n    from .b import *",
            "second read_base",
        ),
        ("from torch.optim import AdamW\na = AdamW(lr=1)", r"dict\(type=AdamW"),
    ],
)
def test_breach_is_named_with_its_line(source, found):
    problems = breaches(source)
    assert problems
    assert problems[0].startswith("c.py:")
    assert any(__import__("re").search(found, problem) for problem in problems)


def test_plain_config_is_fine():
    source = (
        '"""Doc."""\nfrom mmengine.config import read_base\nfrom torch.optim import AdamW\n'
        "with read_base():\n    from .base import *\n"
        "a = dict(type=AdamW, lr=[1e-3 * i for i in range(3)])\na.update(lr=2)\ndel a['lr']\n"
    )
    assert breaches(source) == []


def test_shipped_configs_keep_the_rules():
    paths = [path for root in config_roots() for path in root.rglob("*.py")]
    assert len(paths) >= 8
    for path in paths:
        assert check_rules(ast.parse(path.read_text()), path) == []


def test_python_config_that_would_run_code_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    config = tmp_path / "bad.py"
    config.write_text(f"import os\nos.system('touch {marker}')\n")
    with pytest.raises(ConfigError, match="imports os"):
        load_config(config)
    assert not marker.exists()


def test_name_defined_by_two_bases_is_refused(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.py").write_text("shared = dict(x=1)\n")
    head = "from mmengine.config import read_base\nwith read_base():\n"
    (tmp_path / "both.py").write_text(f"{head}    from .a import *\n    from .b import *\n")
    with pytest.raises(ConfigError, match="'shared' is defined by two bases"):
        load_config(tmp_path / "both.py")


def test_diamond_of_bases_is_no_conflict(tmp_path):
    head = "from mmengine.config import read_base\nwith read_base():\n"
    (tmp_path / "root.py").write_text("work_dir = 'x'\n")
    for name in "ab":
        (tmp_path / f"{name}.py").write_text(f"{head}    from .root import *\nonly_{name} = 1\n")
    (tmp_path / "both.py").write_text(f"{head}    from .a import *\n    from .b import *\n")
    assert load_config(tmp_path / "both.py").work_dir == "x"


def test_missing_base_is_named(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("from mmengine.config import read_base\nwith read_base():\n    from .nowhere import *\n")
    with pytest.raises(ConfigError, match=r"nowhere\.py does not exist"):
        load_config(path)


def test_error_inside_a_config_names_it(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("a = dict(x=1)\nb = a['y']\n")
    with pytest.raises(ConfigError, match="KeyError"):
        load_config(path)
