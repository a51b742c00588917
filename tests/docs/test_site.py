"""The documentation is built, warnings as errors, and needs no network to be read."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LACKING = [
    name for name in ("furo", "griffe", "latex2mathml", "myst_parser", "sphinx") if find_spec(name) is None
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if LACKING:
        pytest.skip(f"{', '.join(LACKING)} not installed: pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / "docs.sh"), str(out)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.slow
def test_the_site_is_whole(site):
    assert "docs/index.html" in (site / "index.html").read_text()
    equations = (ROOT / "docs" / "methods" / "solvers.md").read_text(encoding="utf-8").count("$$") // 2
    page = (site / "docs" / "methods" / "solvers.html").read_text(encoding="utf-8")
    assert len(re.findall('<math [^>]*display="block"', page)) == equations > 0
    balancing = (site / "docs" / "api" / "balancing.html").read_text()
    assert 'id="perception.balancing.build_balancer"' in balancing
    assert 'id="perception.balancing.TaskLosses"' in balancing
    assert "perception data synthesize" in (site / "docs" / "commands.html").read_text()


@pytest.mark.slow
def test_no_page_needs_a_network(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="([^"]+)"', text)
        remote = [address for address in loaded if address.startswith(("http:", "https:", "//"))]
        assert not remote, (page, remote)
