"""`depthfm predict`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
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
from .terminal import complain_about

if TYPE_CHECKING:
    from ..inference.input_files import InputFailure
    from ..inference.prediction import PredictionSettings
    from ..inference.prediction_files import PredictionFolder


def add_parser(commands: Subcommands) -> None:
    """Adds `depthfm predict` to the commands."""
    parser = add_command(
        commands,
        "predict",
        predict,
        "Predict the depth of image files.",
        "Writes, for each input, NAME_depth.npy (float32 in [0, 1], 0 near, 1 far), NAME_log_depth.npy (the network's "
        "log depth), NAME_depth.png (16 bit) and NAME_color.png, and one metadata.json with what is needed to repeat "
        "them. NAME is the input's name without suffix; where names collide, NAME_SUFFIX or NAME_2, NAME_3, ... "
        "A result is replaced only by a later one for the same file, and nothing else that is in the output folder "
        "is overwritten. One command at a time writes into a folder. "
        "A bad input is named on stderr and does not stop the others; the exit status is 0 only if "
        "every input was written.",
    )
    add_images(parser)
    parser.add_argument("--output", "-o", required=True, type=Path, metavar="DIR", help="folder for the results")
    add_model_arguments(parser)
    add_prediction_arguments(parser, "members to average")
    parser.add_argument(
        "--colormap", default="Spectral", metavar="NAME", help="matplotlib's, for NAME_color.png (default: Spectral)"
    )


def predict(args: argparse.Namespace) -> int:
    """Runs `depthfm predict`: predicts the depth of image files."""
    from tqdm import tqdm

    from ..inference.input_files import collect_inputs
    from ..inference.prediction_files import PredictionFolder

    settings = prediction_settings(args)
    folder = PredictionFolder(args.output, args.colormap)
    try:
        inputs, failures = collect_inputs(args.images, skip=folder.results())
        for failure in failures:
            complain_about(failure)
        total = len(inputs) + len(failures)
        written = 0
        for failure in tqdm(
            _predictions(args, settings, inputs, folder), total=len(inputs), unit="image", disable=None
        ):
            if failure is None:
                written += 1
            else:
                complain_about(failure)
    finally:
        folder.close()
    print(f"{written} of {total} inputs written to {args.output}")
    return 0 if written == total else 1


def _predictions(
    args: argparse.Namespace, settings: PredictionSettings, inputs: list[Path], folder: PredictionFolder
) -> Iterator[InputFailure | None]:
    """Loads the model, unless there is nothing to predict, and predicts."""
    if not inputs:
        return
    import torch

    from ..checkpoints.model_folder import load_pipeline, model_fingerprint, resolve_model
    from ..inference.prediction_files import describe_run, predict_files

    model_folder = resolve_model(find_model(args), args.variant)
    pipe = load_pipeline(model_folder, args.device, getattr(torch, args.dtype), args.variant)
    pipe.set_progress_bar_config(disable=True)
    run = describe_run(pipe, settings, args.model or model_folder.name, model_fingerprint(model_folder))
    run["settings"]["colormap"] = args.colormap
    folder.begin_run({**run, "variant": args.variant}, inputs)
    yield from predict_files(pipe, inputs, folder, settings, args.max_pixels)
