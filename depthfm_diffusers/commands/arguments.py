"""Arguments that several commands take, and their types."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeAlias

import torch

from ..control_image import CONTROL_MODES

Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def add_command(
    commands: Subcommands,
    name: str,
    function: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
        commands: The subparsers of `depthfm`.
        name: What it is called by.
        function: What it does with the parsed arguments; returns the exit status.
        summary: One sentence, in the list of commands.
        description: The sentences after that one in its own help.

    Returns:
        Its parser, to which arguments can be added.
    """
    parser = commands.add_parser(name, help=summary, description=f"{summary} {description}")
    parser.add_argument("--verbose", action="store_true", help="library messages and tracebacks (default: off)")
    parser.set_defaults(command=function)
    return parser


def add_images(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    """Adds the images that are read; with `nargs` `"*"`, there may be none."""
    parser.add_argument(
        "images",
        nargs=nargs,
        metavar="IMAGE",
        help="image file, folder (the images directly in it) or quoted pattern ('photos/**/*.jpg')",
    )


def add_model_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds which depth model runs, where, and at which resolution."""
    parser.add_argument(
        "--model", metavar="DIR_OR_REPO", help="model folder or Hub repository (default: the bundled depthfm-tiny)"
    )
    parser.add_argument(
        "--variant", metavar="NAME", help="weight files to load, such as fp16 (default: those without)"
    )
    parser.add_argument("--device", default="auto", help="as torch names it (default: auto, an accelerator if any)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="to compute in (default: float32)")
    parser.add_argument(
        "--processing-resolution",
        type=not_negative,
        metavar="N",
        help="longer side in pixels that the network sees, 0 for the image's own (default: the model's)",
    )


def add_prediction_arguments(parser: argparse.ArgumentParser, ensemble_help: str) -> None:
    """Adds what a run predicts depth with, and is part of its record.

    Args:
        parser: Where to.
        ensemble_help: What the command makes of an ensemble.
    """
    parser.add_argument("--steps", type=positive, metavar="N", help="steps from image to depth (default: the model's)")
    parser.add_argument("--ensemble", type=positive, default=1, metavar="N", help=f"{ensemble_help} (default: 1)")
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="seed of each image's noise (default: 0)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=1, metavar="N", help="members computed at once (default: 1)"
    )


def add_synthesis_models(parser: argparse._ActionsContainer) -> None:
    """Adds the models that images are generated with, besides the depth model."""
    parser.add_argument(
        "--base",
        required=True,
        metavar="DIR_OR_REPO",
        help="Stable Diffusion 1.x or 2.x, or a saved DepthFMControlNetPipeline, which has the other models too",
    )
    parser.add_argument(
        "--controlnet",
        action="append",
        metavar="DIR_OR_REPO",
        help="depth ControlNet made for --base; may be given several times (default: that of --base, if it has one)",
    )


def add_guidance_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds how Stable Diffusion generates."""
    parser.add_argument(
        "--steps", type=positive, default=50, metavar="N", help="steps of Stable Diffusion (default: 50)"
    )
    parser.add_argument(
        "--guidance-scale", type=real_number, default=7.5, metavar="X", help="weight of the prompt (default: 7.5)"
    )


def add_size_arguments(parser: argparse._ActionsContainer, default: str) -> None:
    """Adds the size of generated images; `default` says what it is if it is not given."""
    for side in ("height", "width"):
        parser.add_argument(
            f"--{side}",
            type=positive,
            metavar="N",
            help=f"{side} in pixels, rounded down to a multiple of 8 (default: {default})",
        )


def add_control_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds how control images are made."""
    parser.add_argument(
        "--control-mode",
        choices=CONTROL_MODES,
        default="disparity",
        help="disparity: near is white, as published ControlNets expect; depth: far is (default: disparity)",
    )
    parser.add_argument(
        "--depth-steps", type=positive, metavar="N", help="steps from image to depth (default: the model's)"
    )


def positive(text: str) -> int:
    """An integer of at least 1, as the type of an argument."""
    return _integer(text, 1)


def not_negative(text: str) -> int:
    """An integer of at least 0, as the type of an argument."""
    return _integer(text, 0)


def real_number(text: str) -> float:
    """A finite number, as the type of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return value


def _integer(text: str, lowest: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = lowest - 1
    if value < lowest:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {lowest}, got {text!r}")
    return value
