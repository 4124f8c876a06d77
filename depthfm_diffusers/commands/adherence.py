"""`depthfm adherence`."""

from __future__ import annotations

import argparse
import errno
import json
from contextlib import closing
from pathlib import Path

from ..evaluation.choices import ADHERENCE_FORMAT, CONDITIONS
from .arguments import (
    Subcommands,
    add_command,
    add_control_arguments,
    add_guidance_arguments,
    add_images,
    add_model_arguments,
    add_size_arguments,
    add_synthesis_models,
    find_model,
    not_negative,
    real_number,
)
from .reports import add_report_arguments, add_report_output, check_report_files
from .terminal import Progress


def add_parser(commands: Subcommands) -> None:
    """Adds `depthfm adherence` to the commands."""
    parser = add_command(
        commands,
        "adherence",
        adherence,
        "Measure how well generated images follow the depth of photos.",
        "For each photo, generates an image with the control of its depth, one without, and one with the control of "
        "another photo, all from the same noise; estimates the depth of each and compares it with the photo's: AbsRel "
        "and δ1 after alignment in log depth, and edge F1. The photo itself, encoded and decoded by Stable "
        "Diffusion's autoencoder, gives an upper bound. Writes a JSON report and a picture of the first eight photos. "
        "If stopped, the same command resumes. See docs/synthesis.md.",
    )
    add_images(parser)
    add_synthesis_models(parser)
    add_report_output(parser)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", default="", metavar="TEXT", help="prompt of all images (default: an empty one)")
    prompts.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a prompt per image: JSON lines, or CSV, with file_name and text, as image folders have them",
    )
    parser.add_argument(
        "--conditions",
        nargs="+",
        choices=CONDITIONS,
        default=list(CONDITIONS),
        help=f"what is generated (default: {' '.join(CONDITIONS)})",
    )
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="image i is generated from seed N + i (default: 0)"
    )
    add_guidance_arguments(parser)
    add_control_arguments(parser)
    parser.add_argument(
        "--control-scale", type=real_number, default=1.0, metavar="X", help="strength of the control (default: 1)"
    )
    add_size_arguments(parser, "the photo's")
    add_model_arguments(parser)
    add_report_arguments(parser)


def adherence(args: argparse.Namespace) -> int:
    """Runs `depthfm adherence`: measures how well generated images follow the depth of photos."""
    import torch

    from ..evaluation.adherence.images import check_images, prompted_images
    from ..evaluation.adherence.measures import AdherenceSettings, draw_partners
    from ..evaluation.adherence.report import format_adherence
    from ..evaluation.adherence.run import run_adherence
    from ..inference.input_files import collect_inputs
    from ..inference.prediction import PredictionSettings
    from ..inference.synthesis_models import load_synthesis_folders, resolve_synthesis_models
    from ..pipelines.depthfm_controlnet.pipeline_depthfm_controlnet import DepthFMControlNetPipeline

    settings = AdherenceSettings(
        conditions=args.conditions,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        control_mode=args.control_mode,
        controlnet_conditioning_scale=args.control_scale,
        height=args.height,
        width=args.width,
        depth=PredictionSettings(
            num_inference_steps=args.depth_steps, seed=args.seed, processing_resolution=args.processing_resolution
        ),
        threads=args.threads,
    )
    sheet = check_report_files(args.output, args.contact_sheet)
    _check_not_in_the_way(args.output, sheet)
    files, failures = collect_inputs(args.images)
    if failures:
        raise ValueError(f"{failures[0].name}: {failures[0].reason}")
    files = files[: args.limit]
    # Errors in the data are found before a model is looked for.
    if "shuffled" in args.conditions:
        draw_partners(len(files), args.seed)
    images = prompted_images(files, args.prompt, args.prompts, args.max_pixels)
    check_images(images)
    folders = resolve_synthesis_models(args.base, args.controlnet, find_model(args), args.variant)
    dtype = getattr(torch, args.dtype)
    pipe = load_synthesis_folders(DepthFMControlNetPipeline, folders, args.device, dtype, args.variant)
    pipe.set_progress_bar_config(disable=True)
    for path in (args.output, sheet):
        path.parent.mkdir(parents=True, exist_ok=True)
    models = {**folders.describe(), "variant": args.variant}
    with closing(Progress(shown=True)) as progress:
        report = run_adherence(pipe, images, settings, args.output, models, sheet, progress.show)
    print(f"{format_adherence(report)}\n\nwritten to {args.output}, contact sheet {sheet}")
    return 0


def _check_not_in_the_way(output: Path, sheet: Path) -> None:
    """Raises if a file would be overwritten that is not an earlier report or its picture."""
    if output.exists():
        try:
            form = json.loads(output.read_text(encoding="utf-8"))["format"]
        except (ValueError, TypeError, KeyError):
            form = None
        if form != ADHERENCE_FORMAT:
            raise FileExistsError(
                errno.EEXIST, "not a report of `depthfm adherence`, and not overwritten", str(output)
            )
    elif sheet.exists():
        raise FileExistsError(
            errno.EEXIST, "exists without a report that it belongs to, and is not overwritten", str(sheet)
        )
