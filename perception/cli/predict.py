"""``perception predict``."""

import argparse
from typing import Any

from perception.cli import exit_codes
from perception.cli._configs import choose_model, load_checked, require_weights
from perception.cli._model import ModelChoice
from perception.cli._parser import add_overrides, add_variant, add_verb, positive_float, positive_int


def add_parser(verbs: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "predict",
        run,
        summary="run a model on the samples of an index and draw what it sees",
        examples="""
        perception predict work_dirs/nano --data data/nuscenes/perception_index/v1.0-mini_mini_val.json --num 4
        perception predict work_dirs/nano --data my_sample/info.json --out pictures
        perception predict bevformer_nano --checkpoint model.safetensors --data my_sample/info.json
        perception predict exports/nano --scene scene-0103 --video scene-0103.mp4
        """,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="run folder, checkpoint, export folder, or config with --checkpoint"
    )
    parser.add_argument(
        "--data",
        metavar="INDEX",
        help="index file, see `perception data prepare`; default that of the config's test data",
    )
    parser.add_argument(
        "--data-root", help="folder that image paths are relative to; default found from the index"
    )
    parser.add_argument("--checkpoint", help="weights: run folder, step folder or .safetensors file")
    parser.add_argument("--out", default="predictions", help="folder for pictures and predictions.json")
    parser.add_argument("--num", type=positive_int, metavar="N", help="only N samples, evenly spread")
    parser.add_argument("--score-threshold", type=float, default=0.2, help="boxes below are not drawn")
    parser.add_argument("--scene", metavar="NAME", help="scene of the video, by name or token")
    parser.add_argument(
        "--video", metavar="FILE", help="write a video of --scene instead of pictures, .mp4 or .avi"
    )
    parser.add_argument(
        "--fps", type=positive_float, help="pictures a second of the video; default as it was recorded"
    )
    add_variant(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Predict and draw."""
    choice = choose_model(args.model, args.checkpoint)
    _check_options(args, choice)
    model_path = str(choice.export) if choice.export else require_weights(choice, "add --checkpoint PATH.")
    cfg = load_checked(choice.config, args, loaders=() if args.data else ("test_dataloader",))
    if args.video is not None:
        from perception.engine.video import write_video

        path = write_video(
            cfg,
            model_path,
            scene=args.scene,
            out=args.video,
            index=args.data,
            data_root=args.data_root,
            variant=args.variant,
            score_threshold=args.score_threshold,
            fps=args.fps,
        )
        print(path)
        return exit_codes.OK
    from perception.engine.pictures import draw_predictions

    written = draw_predictions(
        cfg,
        model_path,
        index=args.data,
        data_root=args.data_root,
        out=args.out,
        num=args.num,
        score_threshold=args.score_threshold,
        variant=args.variant,
    )
    for path in written:
        print(path)
    return exit_codes.OK


def _check_options(args: argparse.Namespace, choice: ModelChoice) -> None:
    from perception.config import ConfigError

    if (args.scene is None) != (args.video is None):
        raise ConfigError("--scene NAME and --video FILE go together")
    if args.video is None and args.fps is not None:
        raise ConfigError("--fps goes with --video")
    if args.video is not None and args.num is not None:
        raise ConfigError("--num chooses pictures; a video has the whole scene. Leave it out")
    if choice.export is None and args.variant is not None:
        raise ConfigError(f"--variant goes with an export folder, {args.model} is none; leave it out")
