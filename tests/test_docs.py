"""The commands, config names, keys and links that the pages show are those of the code. Nothing is executed."""

import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest

from perception.cli.bench import RESNET18
from perception.cli.main import build_parser
from perception.config import ConfigError, find_config, load_config
from tests.cli.verbs import VERBS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "data" / "README.md",
    *(page for folder in ("", "cards", "methods") for page in sorted((ROOT / "docs" / folder).glob("*.md"))),
    *sorted((ROOT / "projects").glob("**/README.md")),
]

_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_REPOSITORY_FILE = re.compile(r"(?:tools|perception|configs|tests|docs|projects)/[\w./-]+\.\w+")
DEMOS = ("bevformer_nano", "fcos_nano")
"""For what a page says of no config in particular: it must fit one of them."""
_FILES = {"model.safetensors", "model.pth", "model.onnx", "model.pt2", "model.json"}
_LAUNCHER = "-m perception.cli.main "
_SLURM = re.compile(r"sbatch .*?tools/slurm_train\.sh (.*)")
_DIST_TRAIN = re.compile(r"bash tools/dist_train\.sh (\S+) \S+(.*)")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def snippets(page: Path) -> Iterator[str]:
    """Lines of the code blocks, continued ones joined, and the code spans of the text."""
    text = read(page)
    for block in _FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from _SPAN.findall(_FENCE.sub("", text))


def as_command(snippet: str) -> str | None:
    """The `perception ...` command line that a snippet stands for, or None."""
    line = re.sub(r"\s#\s.*", "", snippet).removeprefix("$ ").strip()
    by_ranks = _DIST_TRAIN.fullmatch(line)
    if by_ranks:
        return f"perception train {by_ranks[1]}{by_ranks[2]}"
    if by_slurm := _SLURM.fullmatch(line):
        return f"perception train {by_slurm[1]}"
    if _LAUNCHER in line:
        return "perception " + line.partition(_LAUNCHER)[2]
    return line if line.startswith("perception ") else None


def commands(page: Path) -> list[tuple[str, bool]]:
    """Command lines of a page, VERB replaced by each verb; and whether the page shows one as wrong."""
    text = read(page)
    found = []
    for snippet in snippets(page):
        command = as_command(snippet)
        if command is None:
            continue
        is_wrong = f"{snippet}\nperception: error:" in text
        found += [
            (command.replace("VERB", verb), is_wrong) for verb in (VERBS if "VERB" in command else ("",))
        ]
    return found


def parse(command: str) -> Namespace | None:
    """Parsed arguments, or None where the command only prints help; ValueError where the parser refuses it."""
    messages = StringIO()
    try:
        with redirect_stderr(messages):
            return build_parser().parse_args(shlex.split(command)[1:])
    except SystemExit as stop:
        if stop.code:
            raise ValueError(f"{command}: {messages.getvalue()}") from stop
        return None


def config_names(args: Namespace) -> list[str]:
    """Arguments that stand for a config by its short name, not for a folder, a file, a placeholder or a benchmark."""
    values = [getattr(args, name, None) for name in ("config", "model", "source", "first", "second")]
    return [
        value
        for value in values
        if value and "/" not in value and "." not in value and not value.isupper() and value != RESNET18
    ]


def load_demo(overrides: list[str]) -> None:
    """Load a demo's config with overrides; ConfigError where they fit none."""
    for name in DEMOS[:-1]:
        try:
            load_config(name, overrides)
        except ConfigError:
            continue
        return
    load_config(DEMOS[-1], overrides)


def test_pages_are_found_and_short() -> None:
    assert {page.name for page in PAGES} >= {
        "README.md",
        "data.md",
        "training.md",
        "evaluation.md",
        "models.md",
    }
    for page in ROOT.glob("docs/*.md"):
        assert len(read(page).splitlines()) <= 110, page


def test_the_extraction_finds_what_it_should(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "See `perception check bevformer_nano`.\n```\nperception train bevformer_nano \\\n  --set a=1  # why\n"
        "bash tools/dist_train.sh bevformer_tiny 8 --dry-run\npython -m x -m perception.cli.main test r\n"
        "sbatch --nodes 2 tools/slurm_train.sh bevformer_tiny --resume\n"
        "$ perception check nano --set b=1\nperception: error: no\n```\n"
    )
    assert [(" ".join(command.split()), wrong) for command, wrong in commands(page)] == [
        ("perception train bevformer_nano --set a=1", False),
        ("perception train bevformer_tiny --dry-run", False),
        ("perception test r", False),
        ("perception train bevformer_tiny --resume", False),
        ("perception check nano --set b=1", True),
        ("perception check bevformer_nano", False),
    ]
    with pytest.raises(ValueError, match="invalid choice"):
        parse("perception trian bevformer_nano")
    with pytest.raises(ValueError, match="unrecognized"):
        parse("perception train bevformer_nano --resme")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path) -> None:
    found = commands(page)
    assert found, f"{page} shows no command"
    for command, is_wrong in found:
        args = parse(command)
        if args is None:
            continue
        for name in config_names(args):
            find_config(name)
        overrides = getattr(args, "overrides", [])
        names = config_names(args)
        if is_wrong:
            with pytest.raises(ConfigError):
                load_config((*names, DEMOS[0])[0], overrides)
        elif overrides and names:
            load_config(names[0], overrides)
        elif overrides:  # a run folder stands for a run of a demo
            load_demo(overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_overrides_in_the_text_fit_a_config(page: Path) -> None:
    for span in _SPAN.findall(_FENCE.sub("", read(page))):
        if span.startswith("--set ") and "KEY=VALUE" not in span:
            load_demo(shlex.split(span)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_config_names_exist(page: Path) -> None:
    for span in _SPAN.findall(_FENCE.sub("", read(page))):
        if re.fullmatch(r"(bevformer|fcos)_[a-z0-9_]+", span):
            find_config(span)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_exist(page: Path) -> None:
    for target in _LINK.findall(read(page)):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page}: {target} does not exist"
    for snippet in snippets(page):
        for name in _REPOSITORY_FILE.findall(snippet):
            assert (ROOT / name).is_file(), f"{page}: {name} does not exist"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name == "docs"], ids=lambda page: page.name
)
def test_keys_in_the_text_exist(page: Path) -> None:
    """Dotted keys of a config that the text names are in a config, or its classes take them."""
    tops = ("model", "train_dataloader", "val_dataloader", "test_dataloader", "optim_wrapper", "default_hooks",
            "val_evaluator", "test_evaluator", "train_cfg")  # fmt: skip
    for span in _SPAN.findall(_FENCE.sub("", read(page))):
        key = span.partition("=")[0]
        if key.partition(".")[0] in tops and re.fullmatch(r"\w+(\.[\w-]+)+", key) and key not in _FILES:
            load_demo([f"{key}=null"])
