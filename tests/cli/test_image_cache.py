"""`perception data prepare --cache`, and configs that use what it makes: checked before a training starts."""

import json
import shutil
from pathlib import Path

import pytest

from perception.cli.main import main

LOADERS = ("train", "val", "test")


@pytest.fixture(scope="module")
def prepared(synthetic_root, tmp_path_factory) -> Path:
    """A copy of the small world with its index and a cache of nano's size beside it; read only."""
    root = Path(shutil.copytree(synthetic_root, tmp_path_factory.mktemp("prepared") / "nuscenes"))
    assert main(["data", "prepare", str(root), "--cache", "352x198"]) == 0
    return root


@pytest.fixture
def world(prepared, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(prepared, tmp_path / "world"))


def words_for(root: Path, *changes: str, cache_dir: str = "auto") -> list[str]:
    """A command's options that let nano read a root's cache."""
    words = ["--data-root", str(root), "--set", *changes]
    words += [f"{loader}_dataloader.num_workers=0" for loader in LOADERS]
    words += [f"{loader}_dataloader.dataset.pipeline.-2.cache_dir=null" for loader in LOADERS]
    return words + [f"{loader}_dataloader.dataset.pipeline.0.cache_dir={cache_dir}" for loader in LOADERS]


def failure(words: list[str], capsys, code: int = 3) -> str:
    capsys.readouterr()
    assert main(words) == code
    return capsys.readouterr().err.split("perception: error: ")[1]


def test_made_again_only_where_needed_and_read(prepared, capsys):
    assert main(["data", "prepare", str(prepared), "--cache", "352x198", "352x198", "64x36"]) == 0
    folder = prepared / "perception_index" / "image_cache"
    *indexes, first, second = capsys.readouterr().out.splitlines()
    assert len(indexes) == 2
    assert first.startswith(f"{folder / '352x198'}: 48 images, ")
    assert first.endswith(" MB, all were there")
    assert second.endswith(", 48 made now")
    assert main(["check", "bevformer_nano", *words_for(prepared)]) == 0
    items = ["bench", "data", "bevformer_nano", "--items", "2", *words_for(prepared)]
    assert main([*items[:3], "--loading", "--json", *items[3:]]) == 0
    assert main(items) == 0
    assert main(["check", "bevformer_nano", *words_for(prepared, cache_dir=str(folder))]) == 0


def test_beside_an_index_elsewhere_and_with_all_options(synthetic_root, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["data", "prepare", str(synthetic_root), "--out", str(out), "--cache", "64x36", "--workers", "1"]
    assert main([*words, "--cache-quality", "80", "--cache-interpolation", "area"]) == 0
    manifest = json.loads((out / "image_cache" / "64x36" / "cache.json").read_text())
    assert (manifest["quality"], manifest["interpolation"]) == (80, "area")
    assert "jpeg 80 and area" in failure(words, capsys)
    fast = tmp_path / "fast"
    assert main([*words, "--cache-dir", str(fast), "--cache-format", "bmp"]) == 0
    assert len(list(fast.glob("64x36/samples/CAM_BACK/*.bmp"))) == 8


def test_one_bad_size_does_not_stop_the_others(world, capsys):
    message = failure(["data", "prepare", str(world), "--cache", "800x450", "64x36"], capsys)
    assert "704×396" in message
    assert (world / "perception_index" / "image_cache" / "64x36" / "cache.json").is_file()


@pytest.mark.parametrize("size", ["512", "512x", "x288", "0x5", "512x288x3", "-1x5", "99999x5", "a b"])
def test_a_size_that_is_none(size, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["data", "prepare", "root", "--cache", size])
    assert "WIDTHxHEIGHT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--cache-quality", "90", "--workers", "2"],
            "--cache-quality, --workers: only together with --cache",
        ),
        (["--cache", "64x36", "--cache-format", "bmp", "--cache-quality", "90"], "only JPEGs have one"),
    ],
)
def test_options_that_do_not_go_together(options, message, capsys):
    assert message in failure(["data", "prepare", "root", *options], capsys, code=2)


def test_a_config_whose_cache_is_not_there(world, capsys):
    shutil.rmtree(world / "perception_index" / "image_cache")
    for command in (
        ["check", "bevformer_nano"],
        ["train", "bevformer_nano", "--work-dir", str(world / "run")],
    ):
        message = failure([*command, *words_for(world)], capsys)
        assert message.count("there is no image cache of 352×198") == 1  # the same for all loaders: told once
        assert f"`perception data prepare {world} --cache 352x198`" in message
    assert not (world / "run").exists()
    assert main(["check", "bevformer_nano", "--no-data", *words_for(world)]) == 0


def test_a_copy_that_is_missing(world, capsys):
    copies = sorted((world / "perception_index/image_cache/352x198/samples/CAM_BACK").glob("*scene0061*"))
    copies[1].unlink()
    message = failure(["check", "bevformer_nano", *words_for(world)], capsys)
    assert "lacks 1 of the 24 images" in message
    assert copies[1].name in message
    assert f"perception data prepare {world} --cache 352x198" in message
    skipping = words_for(world, "train_dataloader.dataset.on_error=skip")
    assert main(["check", "bevformer_nano", *skipping]) == 0
    assert main(["data", "prepare", str(world), "--cache", "352x198"]) == 0
    assert main(["check", "bevformer_nano", *words_for(world)]) == 0


def test_a_cache_of_other_images(world, capsys):
    for path in world.glob("samples/CAM_*/*.jpg"):
        path.write_bytes(path.read_bytes() + b"\n")
    message = failure(["check", "bevformer_nano", *words_for(world)], capsys)
    assert "is stale" in message
    assert f"`perception data prepare {world} --cache 352x198` makes it again" in message
    assert main(["data", "prepare", str(world), "--cache", "352x198"]) == 0
    assert main(["check", "bevformer_nano", *words_for(world)]) == 0


def test_a_cache_made_by_another_rule(prepared, capsys):
    area = "train_dataloader.dataset.pipeline.1.interpolation=area"
    message = failure(["check", "bevformer_nano", *words_for(prepared, area)], capsys)
    assert "was made with interpolation='bilinear', and ResizeMultiView has 'area'" in message


def test_a_cache_of_another_size_than_the_resize(prepared, capsys):
    sizes = [f"train_dataloader.dataset.pipeline.{step}=[176,99]" for step in ("0.target_size", "1.size")]
    message = failure(["check", "bevformer_nano", *words_for(prepared, *sizes)], capsys)
    assert "no image cache of 176×99" in message
    message = failure(["check", "bevformer_nano", *words_for(prepared, sizes[1])], capsys, code=2)
    assert "they must be equal" in message


@pytest.mark.slow
def test_training_from_a_cache(prepared, tmp_path):
    words = words_for(
        prepared, "train_cfg.max_epochs=1", "train_cfg.val_interval=null", "param_scheduler.0.end=2"
    )
    words += ["param_scheduler.1.T_max=1", "param_scheduler.1.end=1"]
    run = tmp_path / "run"
    assert main(["train", "bevformer_nano", "--work-dir", str(run), *words]) == 0
    assert main(["test", str(run)]) == 0
