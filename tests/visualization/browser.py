"""A page in headless Chromium: what it says on its console, what lies where, and how it prints."""

import json
import re
import shutil
import subprocess

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PROBE = """
<script>
addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("figure")].map(figure => {
    const inner = figure.querySelector("img, svg, table"), box = inner.getBoundingClientRect();
    return {
      kind: inner.tagName.toLowerCase(), width: box.width, height: box.height,
      loaded: inner.naturalWidth === undefined || inner.naturalWidth > 0,
      hidden: !!figure.closest("details:not([open])"),
    };
  });
  const root = document.documentElement;
  parent.postMessage(JSON.stringify({scroll: root.scrollWidth, width: root.clientWidth, figures: boxes}), "*");
});
</script>
"""
_OUTER = """<!DOCTYPE html><body><iframe src="{name}" style="width:{width}px;height:900px;border:0"></iframe>
<script>addEventListener("message", e => {{ document.body.dataset.found = e.data; }});</script></body>"""


def chromium():
    """Path of the browser, or the test is skipped."""
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs a Chromium on the PATH, under one of the names {', '.join(_NAMES)}")
    return path


def run(folder, *words):
    return subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=4000", *words],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


def console(folder, page):
    """What the page itself says on the console, its own policy against scripts and the network being in force."""
    done = run(folder, "--dump-dom", page.as_uri())
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def measure(folder, page, width):
    """Sizes in a window of some width: `scroll` (of the content), `width` and `figures`."""
    text = page.read_text(encoding="utf-8")
    probe = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (folder / "probe.html").write_text(probe + _PROBE, encoding="utf-8")
    outer = folder / f"outer-{width}.html"
    outer.write_text(_OUTER.format(name="probe.html", width=width), encoding="utf-8")
    done = run(folder, "--dump-dom", outer.as_uri())
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, f"the page did not answer: {done.stderr[-400:]}"
    return json.loads(found[1].replace("&quot;", '"'))


def print_pdf(folder, page):
    """The page as PDF."""
    path = folder / "page.pdf"
    run(folder, f"--print-to-pdf={path}", "--no-pdf-header-footer", page.as_uri())
    return path.read_bytes()
