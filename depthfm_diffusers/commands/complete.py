"""`depthfm complete`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.choices import COMPLETION_METHODS
from .arguments import (
    Subcommands,
    add_command,
    add_images,
    add_model_arguments,
    add_prediction_arguments,
    find_model,
    not_negative,
    prediction_settings,
    real_number,
)
from .terminal import complain_about

if TYPE_CHECKING:
    from ..inference.completion_files import CompletionFolder, CompletionSettings
    from ..inference.input_files import InputFailure
    from ..inference.prediction import PredictionSettings


def add_parser(commands: Subcommands) -> None:
    """Adds `depthfm complete` to the commands."""
    parser = add_command(
        commands,
        "complete",
        complete,
        "Complete sparse or partial metric depth of image files.",
        "Writes, for each input, NAME_completed.npy (float32 metres), NAME_completed.png (16 bit; millimetres, unless "
        "the depth goes beyond 65.5 m: metadata.json has the scale of each), NAME_uncertainty.npy (metres) and "
        "NAME_completed_color.png, and one metadata.json with what is needed to repeat them. Names, an output folder "
        "with earlier results, and bad inputs are treated as by `depthfm predict`.",
    )
    add_images(parser)
    parser.add_argument(
        "--depth",
        required=True,
        type=Path,
        metavar="PATH",
        help="known depth of the image: 16-bit grey PNG or TIFF, 32-bit floating-point TIFF, .npy or .exr, of the "
        "size of the image; holes are 0 or NaN. For several images, a folder with a file of the same name for each",
    )
    parser.add_argument(
        "--scale",
        type=real_number,
        metavar="X",
        help="metres per stored unit of --depth (default: 0.001 for integers, 1 for floating point)",
    )
    parser.add_argument("--output", "-o", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--keep-known", action="store_true", help="return known values exactly, wrong ones too (default: off)"
    )
    parser.add_argument(
        "--method",
        choices=COMPLETION_METHODS,
        default="auto",
        help="trained: the network takes the points as an input, if it was trained for that; optimize: its output is "
        "fitted to them (default: auto, trained if the model can)",
    )
    parser.add_argument(
        "--optimization-steps",
        type=not_negative,
        default=0,
        metavar="N",
        help="most steps in which the output latent is fitted to the points (default: 0, none)",
    )
    parser.add_argument(
        "--guided", action="store_true", help="let the points steer the flow itself, which is slow (default: off)"
    )
    parser.add_argument(
        "--no-correction", action="store_true", help="do not interpolate what is left at the points (default: off)"
    )
    parser.add_argument(
        "--max-seconds", type=real_number, metavar="X", help="time for each image's optimization (default: no limit)"
    )
    add_model_arguments(parser)
    add_prediction_arguments(parser, "members to average")
    parser.add_argument(
        "--colormap", default="Spectral", metavar="NAME", help="matplotlib's, for the picture (default: Spectral)"
    )


def complete(args: argparse.Namespace) -> int:
    """Runs `depthfm complete`: completes the depth of image files."""
    from tqdm import tqdm

    from ..inference.completion_files import CompletionFolder, CompletionSettings, pair_depth_files
    from ..inference.input_files import collect_inputs

    settings = CompletionSettings(
        method=args.method,
        num_optimization_steps=args.optimization_steps,
        guided_flow=args.guided,
        correct_residual=not args.no_correction,
        keep_known=args.keep_known,
        max_seconds=args.max_seconds,
        scale=args.scale,
    )
    prediction = prediction_settings(args)
    folder = CompletionFolder(args.output, args.colormap)
    try:
        inputs, failures = collect_inputs(args.images, skip=folder.results())
        pairs, without_depth = pair_depth_files(inputs, args.depth)
        failures += without_depth
        for failure in failures:
            complain_about(failure)
        total, written = len(pairs) + len(failures), 0
        results = _completions(args, prediction, settings, pairs, folder)
        for result in tqdm(results, total=len(pairs), unit="image", disable=None):
            if result is None:
                written += 1
            else:
                complain_about(result)
    finally:
        folder.close()
    print(f"{written} of {total} inputs written to {args.output}")
    return 0 if written == total else 1


def _completions(
    args: argparse.Namespace,
    prediction: PredictionSettings,
    settings: CompletionSettings,
    pairs: dict[Path, Path],
    folder: CompletionFolder,
) -> Iterator[InputFailure | None]:
    """Loads the model, unless there is nothing to complete, and completes."""
    if not pairs:
        return
    import torch

    from ..checkpoints.model_folder import load_pipeline, model_fingerprint, resolve_model
    from ..inference.completion_files import complete_files
    from ..inference.prediction_files import describe_run
    from ..pipelines.depthfm.pipeline_depthfm_completion import DepthFMDepthCompletionPipeline

    model_folder = resolve_model(find_model(args), args.variant)
    dtype = getattr(torch, args.dtype)
    base = load_pipeline(model_folder, args.device, dtype, args.variant)
    pipe = DepthFMDepthCompletionPipeline.from_pipe(base, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    run = describe_run(pipe, prediction, args.model or model_folder.name, model_fingerprint(model_folder))
    run["settings"] |= {**asdict(settings), "colormap": args.colormap}
    folder.begin_run({**run, "variant": args.variant}, [*pairs, *pairs.values()])
    yield from complete_files(pipe, pairs, folder, prediction, settings, args.max_pixels)
