"""Arguments that several commands share, and their types."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..utils.choices import CONTROL_MODES, DTYPES

if TYPE_CHECKING:
    from ..inference.prediction import PredictionSettings

Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


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
        name: Its name on the command line.
        function: Runs the command with the parsed arguments and returns the exit status.
        summary: One sentence, for the list of commands.
        description: The sentences that follow it in the command's own help.

    Returns:
        Its parser, to which arguments can be added.
    """
    parser = commands.add_parser(name, help=summary, description=f"{summary} {description}")
    parser.add_argument("--verbose", action="store_true", help="library messages and tracebacks (default: off)")
    parser.set_defaults(command=function)
    return parser


def add_images(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    """Adds the input images; with `nargs` `"*"`, there may be none."""
    parser.add_argument(
        "images",
        nargs=nargs,
        metavar="IMAGE",
        help="image file, folder (the images directly in it) or quoted pattern ('photos/**/*.jpg')",
    )
    parser.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="most pixels that an image may have, by its header; its longer side may have a hundredth of that "
        "(default: 120000000)",
    )


def add_model_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds the depth model, its device, its precision and its resolution."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="model folder, Hub repository, or file of the authors' weights, which needs --vae and is converted once "
        "into a cache (default: the bundled depthfm-tiny)",
    )
    add_conversion_arguments(parser)
    parser.add_argument(
        "--variant", metavar="NAME", help="weight files to load, such as fp16 (default: those without)"
    )
    parser.add_argument(
        "--device", default="auto", help="device, as torch names it (default: auto, an accelerator if there is one)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="precision to compute in (default: float32)"
    )
    parser.add_argument(
        "--processing-resolution",
        type=not_negative,
        metavar="N",
        help="longer side in pixels that the network sees, 0 for the image's own (default: the model's)",
    )


def add_conversion_arguments(parser: argparse._ActionsContainer, vae_is_required: bool = False) -> None:
    """Adds the autoencoder, and what a file of weights may not say."""
    parser.add_argument(
        "--vae",
        required=vae_is_required,
        type=Path,
        metavar="PATH",
        help="the autoencoder: its folder in diffusers' format, a Stable Diffusion folder that has one in vae/, or a "
        "single file such as vae-ft-mse-840000-ema-pruned.safetensors",
    )
    parser.add_argument(
        "--hparams",
        type=Path,
        metavar="FILE",
        help="JSON or YAML file with arguments of the authors' UNetModel (default: from the checkpoint; of the UNet "
        "alone, from its shapes, with heads of 64 channels as in Stable Diffusion 2.1)",
    )
    embedding = parser.add_mutually_exclusive_group()
    embedding.add_argument(
        "--empty-text-embedding",
        type=Path,
        metavar="FILE",
        help="embedding of the empty prompt, .npy, .safetensors or .pt (default: from the checkpoint)",
    )
    embedding.add_argument(
        "--text-encoder",
        type=Path,
        metavar="DIR",
        help="compute that embedding with this Stable Diffusion folder (2.1, for the authors' weights)",
    )
    parser.add_argument(
        "--noise-augmentation-step",
        type=not_negative,
        metavar="N",
        help="step of the source's noise (default: the checkpoint's; of the UNet alone, 400)",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="unpickle without restriction, which can run any code in the file (default: off)",
    )


def conversion_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what `add_conversion_arguments` reads, without the autoencoder, by the names of `convert_checkpoint`."""
    return {
        "trust_pickle": args.trust_pickle,
        "hparams": args.hparams,
        "empty_text_embedding": args.empty_text_embedding,
        "text_encoder": args.text_encoder,
        "noise_augmentation_step": args.noise_augmentation_step,
    }


def find_model(args: argparse.Namespace) -> str | None:
    """Returns `--model` as a folder or the name of a repository: a file is converted into the cache, if it is not yet.

    Raises:
        ValueError: If arguments are missing for a file, or given that only a file needs.
    """
    options = {"vae": args.vae, **conversion_options(args)}
    flags = [
        f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None and value is not False
    ]
    if args.model is None or not Path(args.model).expanduser().is_file():
        if flags:
            raise ValueError(
                f"{', '.join(flags)}: only for a file of weights as --model, but {args.model or 'the bundled model'} "
                "is not a file."
            )
        return args.model
    if args.vae is None:
        raise ValueError(
            f"--model {args.model} is a file: of a file of weights, name the autoencoder with --vae PATH."
        )
    if args.variant is not None:
        raise ValueError(
            f"--variant chooses files of a model folder, but --model {args.model} is a file: leave it out."
        )
    from ..checkpoints.conversion_cache import converted_model
    from .terminal import complain

    return str(converted_model(args.model, args.vae, on_message=complain, **conversion_options(args)))


def add_prediction_arguments(parser: argparse.ArgumentParser, ensemble_help: str) -> None:
    """Adds the settings of a prediction.

    Args:
        parser: The parser of the command.
        ensemble_help: What the command does with an ensemble.
    """
    parser.add_argument("--steps", type=positive, metavar="N", help="steps from image to depth (default: the model's)")
    parser.add_argument("--ensemble", type=positive, default=1, metavar="N", help=f"{ensemble_help} (default: 1)")
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="seed of each image's noise (default: 0)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=1, metavar="N", help="members computed at once (default: 1)"
    )


def prediction_settings(args: argparse.Namespace) -> PredictionSettings:
    """Returns the settings that `add_prediction_arguments` and `--processing-resolution` stand for."""
    from ..inference.prediction import PredictionSettings

    return PredictionSettings(
        num_inference_steps=args.steps,
        ensemble_size=args.ensemble,
        seed=args.seed,
        processing_resolution=args.processing_resolution,
        batch_size=args.batch_size,
    )


def add_synthesis_models(parser: argparse._ActionsContainer) -> None:
    """Adds the models that generate images, besides the depth model."""
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
    """Adds the steps and the guidance of Stable Diffusion."""
    parser.add_argument(
        "--steps", type=positive, default=50, metavar="N", help="steps of Stable Diffusion (default: 50)"
    )
    parser.add_argument(
        "--guidance-scale", type=real_number, default=7.5, metavar="X", help="weight of the prompt (default: 7.5)"
    )


def add_size_arguments(parser: argparse._ActionsContainer, default: str) -> None:
    """Adds the size of generated images; `default` describes the size without these arguments."""
    for side in ("height", "width"):
        parser.add_argument(
            f"--{side}",
            type=positive,
            metavar="N",
            help=f"{side} in pixels, rounded down to a multiple of 8 (default: {default})",
        )


def add_control_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds how control images are made from depth."""
    parser.add_argument(
        "--control-mode",
        choices=CONTROL_MODES,
        default="disparity",
        help="disparity: near is white, as published ControlNets expect; depth: far is white (default: disparity)",
    )
    parser.add_argument(
        "--depth-steps", type=positive, metavar="N", help="steps from image to depth (default: the model's)"
    )


def positive(text: str) -> int:
    """Reads an integer of at least 1, as an argparse type."""
    return _integer(text, 1)


def not_negative(text: str) -> int:
    """Reads an integer of at least 0, as an argparse type."""
    return _integer(text, 0)


def real_number(text: str) -> float:
    """Reads a finite number, as an argparse type."""
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
