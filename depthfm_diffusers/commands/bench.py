"""`depthfm bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Subcommands, add_command, add_model_arguments, find_model, positive


def add_parser(commands: Subcommands) -> None:
    """Adds `depthfm bench` to the commands."""
    parser = add_command(
        commands,
        "bench",
        bench,
        "Time a model, and Marigold's pipeline on the same components.",
        "Measures encoding, each network evaluation, decoding, the whole call and peak memory, for this pipeline and "
        "for diffusers' MarigoldDepthPipeline built on the same UNet and autoencoder with DDIM steps. All are "
        "measured in one process, in turn. Prints medians over the repeats.",
    )
    add_model_arguments(parser)
    parser.add_argument("--image", type=Path, metavar="FILE", help="image to run on (default: 640x480 of noise)")
    parser.add_argument(
        "--steps", type=positive, nargs="+", default=[1, 2], metavar="N", help="steps of DepthFM (default: 1 2)"
    )
    parser.add_argument(
        "--marigold-steps",
        type=positive,
        nargs="+",
        default=[1, 4, 10],
        metavar="N",
        help="DDIM steps of Marigold (default: 1 4 10)",
    )
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="measurements of each (default: 5)")
    parser.add_argument("--output", "-o", type=Path, metavar="FILE", help="also write the figures as JSON")


def bench(args: argparse.Namespace) -> int:
    """Runs `depthfm bench`: measures time and memory, also of Marigold's pipeline on the same components."""
    import torch

    from ..checkpoints.model_folder import load_pipeline, resolve_model
    from ..evaluation.speed import format_table, run_benchmark
    from ..image_processing import load_image
    from ..utils.files import save_json

    model_folder = resolve_model(find_model(args), args.variant)
    pipe = load_pipeline(model_folder, args.device, getattr(torch, args.dtype), args.variant)
    report = run_benchmark(
        pipe,
        image=None if args.image is None else load_image(args.image),
        steps=args.steps,
        marigold_steps=args.marigold_steps,
        repeats=args.repeats,
        processing_resolution=args.processing_resolution,
    )
    report["model"] = args.model or model_folder.name
    print(format_table(report))
    if args.output is not None:
        save_json(args.output, report)
    return 0
