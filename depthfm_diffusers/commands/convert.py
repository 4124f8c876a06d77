"""`depthfm convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Subcommands, add_command, add_conversion_arguments, conversion_options
from .terminal import complain


def add_parser(commands: Subcommands) -> None:
    """Adds `depthfm convert` to the commands."""
    parser = add_command(
        commands,
        "convert",
        convert,
        "Convert weights of the DepthFM authors.",
        "Writes a complete diffusers folder (safetensors), which needs nothing else to run. An interrupted conversion "
        "leaves no folder that looks complete.",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="FILE",
        help="the authors' file (.ckpt), or the UNet alone under the authors' names (.safetensors)",
    )
    add_conversion_arguments(parser, vae_is_required=True)
    parser.add_argument("--output", "-o", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--rescale-self-attention",
        action="store_true",
        help="scale self-attention as the authors' code does without xformers (default: off; can be changed at load)",
    )
    parser.add_argument(
        "--variant", choices=["fp16"], help="also write the weights in float16 (default: float32 only)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier model folder at --output (default: off)"
    )


def convert(args: argparse.Namespace) -> int:
    """Runs `depthfm convert`: converts a checkpoint of the authors to a diffusers folder."""
    from ..checkpoints.convert import convert_checkpoint

    folder = convert_checkpoint(
        args.checkpoint,
        args.vae,
        args.output,
        rescale_self_attention=args.rescale_self_attention,
        variant=args.variant,
        overwrite=args.overwrite,
        on_assumption=complain,
        **conversion_options(args),
    )
    print(f"written to {folder}")
    return 0
