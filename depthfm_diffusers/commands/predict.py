"""`depthfm predict`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import (
    Subcommands,
    add_command,
    add_images,
    add_model_arguments,
    add_prediction_arguments,
    find_model,
    prediction_settings,
)
from .geometry_arguments import add_geometry_arguments, geometry_settings
from .metric_arguments import add_metric_arguments, metric_settings, report_fits
from .predict_clips import add_clip_arguments, predict_clips, split_clips
from .terminal import complain, complain_about

if TYPE_CHECKING:
    from ..inference.input_files import InputFailure
    from ..inference.metric_files import MetricSettings
    from ..inference.prediction import PredictionSettings
    from ..inference.prediction_files import PredictionFolder
    from ..inference.video.clips import Clip


def add_parser(commands: Subcommands) -> None:
    """Adds `depthfm predict` to the commands."""
    parser = add_command(
        commands,
        "predict",
        predict,
        "Predict the depth of images and videos.",
        "Writes, for each input, NAME_depth.npy (float32 in [0, 1], 0 near, 1 far), NAME_log_depth.npy (the network's "
        "log depth), NAME_depth.png (16 bit) and NAME_color.png, or what --save names, and one metadata.json with "
        "what is needed to repeat them. "
        "NAME is the input's name without suffix; where names collide, NAME_SUFFIX or NAME_2, NAME_3, ... "
        "Of a video, it writes NAME_color.mp4, with the sound of the input, and what --save-frames asks for. "
        "If stopped, the same command goes on with the frames that are left. "
        "A result is replaced only by a later one for the same file, and nothing else that is in the output folder "
        "is overwritten. One command at a time writes into a folder. "
        "A bad input is named on stderr and does not stop the others; the exit status is 0 only if "
        "every input was written.",
    )
    add_images(parser)
    parser.add_argument("--output", "-o", required=True, type=Path, metavar="DIR", help="folder for the results")
    add_model_arguments(parser)
    add_prediction_arguments(parser, "members to average")
    add_clip_arguments(parser)
    parser.add_argument(
        "--colormap",
        default="Spectral",
        metavar="NAME",
        help="matplotlib's, for NAME_color.png and .mp4 (default: Spectral)",
    )
    add_metric_arguments(parser)
    add_geometry_arguments(parser)


def predict(args: argparse.Namespace) -> int:
    """Runs `depthfm predict`: predicts the depth of image files and videos."""
    from ..inference.input_files import collect_inputs
    from ..inference.prediction_files import PredictionFolder

    settings = prediction_settings(args)
    metric = metric_settings(args)
    geometry = geometry_settings(args)
    folder = PredictionFolder(args.output, args.colormap, geometry)
    try:
        inputs, failures = collect_inputs(args.images, skip=folder.results())
        images, clips = split_clips(args, inputs)
        for failure in failures:
            complain_about(failure)
        for assumption in geometry.assumptions(metric) if images else ():
            complain(assumption)
        total = len(images) + len(clips) + len(failures)
        written = 0
        for problem in _predictions(args, settings, metric, images, clips, folder):
            if problem is None:
                written += 1
            else:
                complain_about(problem)
        report_fits(folder, images, metric)
    finally:
        folder.close()
    print(f"{written} of {total} inputs written to {args.output}")
    return 0 if written == total else 1


def _predictions(
    args: argparse.Namespace,
    settings: PredictionSettings,
    metric: MetricSettings,
    images: list[Path],
    clips: dict[Path, Callable[[], Clip]],
    folder: PredictionFolder,
) -> Iterator[InputFailure | None]:
    """Loads the model, unless there is nothing to predict, and predicts."""
    if not images and not clips:
        return
    from ..inference.geometry_files import DEPTH_ONLY

    # Errors come before a model is loaded, or fetched.
    metric.known_points(images)
    if clips and metric.has_points:
        raise ValueError(f"Points of known depth are for images, got a video: {next(iter(clips))}.")
    if clips and folder.geometry.kinds != DEPTH_ONLY.kinds:
        raise ValueError(f"--save is for images, got a video: {next(iter(clips))}. Videos have --save-frames.")
    import torch
    from tqdm import tqdm

    from ..checkpoints.model_folder import load_pipeline, model_fingerprint, resolve_model
    from ..inference.prediction_files import describe_run, predict_files

    model_folder = resolve_model(find_model(args), args.variant)
    pipe = load_pipeline(model_folder, args.device, getattr(torch, args.dtype), args.variant)
    pipe.set_progress_bar_config(disable=True)
    run = describe_run(pipe, settings, args.model or model_folder.name, model_fingerprint(model_folder))
    run["settings"] |= {"colormap": args.colormap, **folder.geometry.describe()}
    run["variant"] = args.variant
    if images:
        folder.begin_run(run, images)
        predictions = predict_files(pipe, images, folder, settings, args.max_pixels, metric)
        yield from tqdm(predictions, total=len(images), unit="image", disable=None)
    yield from predict_clips(args, pipe, settings, clips, folder, run)
