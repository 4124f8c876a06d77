"""`depthfm synthesize`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
    positive,
    real_number,
)
from .terminal import complain, complain_about

if TYPE_CHECKING:
    from ..inference.input_files import InputFailure
    from ..inference.synthesis_files import SynthesisFolder, SynthesizedImage
    from ..inference.synthesis_inputs import SynthesisSources
    from ..inference.synthesis_settings import SynthesisPipeline, SynthesisSettings


def add_parser(commands: Subcommands) -> None:
    """Adds `depthfm synthesize` to the commands."""
    parser = add_command(
        commands,
        "synthesize",
        synthesize,
        "Generate images that follow the depth of photos.",
        "Estimates the depth of each photo and generates images from the prompt that have the same depth, by Stable "
        "Diffusion with a depth ControlNet. Writes, for each input, NAME_seedN.png (one per seed), NAME_control.png "
        "(the ControlNet's input) and NAME_log_depth.npy, and one metadata.json with what is needed to repeat them. "
        "Each image is written when it is done, and can be made again on its own from its seed. NAME is the input's "
        "name without suffix; where names collide, NAME_SUFFIX or NAME_2, NAME_3, ... The same command replaces its "
        "own images and another seed adds to them; other settings get another NAME, and nothing else that is in the "
        "output folder is overwritten. One command at a time writes into a folder. "
        "A bad input is named on stderr and does not stop the others; the exit status "
        "is 0 only if every image was written. See docs/synthesis.md.",
    )
    add_images(parser, "*")
    parser.add_argument("--output", "-o", required=True, type=Path, metavar="DIR", help="folder for the results")
    _add_generation_arguments(parser.add_argument_group("what to generate"))
    _add_depth_arguments(parser.add_argument_group("depth and control"))
    models = parser.add_argument_group("models")
    add_synthesis_models(models)
    models.add_argument("--lora", metavar="PATH", help="LoRA for --base: safetensors file, or folder of one")
    add_model_arguments(models)
    models.add_argument(
        "--offload",
        action="store_true",
        help="keep only the network at work on the accelerator, for little memory (default: off)",
    )
    parser.set_defaults(check=partial(_check_usage, parser))


def _add_generation_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to generate; may be empty")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what not to generate (default: nothing)")
    parser.add_argument(
        "--images-per-prompt", "-n", type=positive, default=1, metavar="N", help="images of each input (default: 1)"
    )
    parser.add_argument(
        "--seed",
        type=not_negative,
        default=0,
        metavar="N",
        help="seed of each input's first image; its others have N+1, N+2, ... (default: 0)",
    )
    add_guidance_arguments(parser)
    parser.add_argument(
        "--img2img", action="store_true", help="start from the photo instead of noise, keeping its colours in part"
    )
    parser.add_argument(
        "--mask", type=Path, metavar="FILE", help="repaint only what is white in this picture, of the photos' size"
    )
    parser.add_argument(
        "--strength",
        type=real_number,
        metavar="X",
        help="how much of the photo is replaced, in (0, 1] (default: 0.8 with --img2img, 1 with --mask)",
    )
    add_size_arguments(parser, "the input's, or in proportion")


def _add_depth_arguments(parser: argparse._ArgumentGroup) -> None:
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--depth",
        type=Path,
        metavar="FILE",
        help="depth to use instead of an estimated one, in any unit: .npy, or 16-bit PNG; without IMAGE, or with the "
        "one of --img2img or --mask",
    )
    given.add_argument(
        "--log-depth", type=Path, metavar="FILE", help="the same as a logarithm, such as NAME_log_depth.npy"
    )
    add_control_arguments(parser)
    parser.add_argument(
        "--control-scale",
        type=real_number,
        action="append",
        metavar="X",
        help="strength of the control; given several times: of each ControlNet (default: 1, with --img2img 0.8, with "
        "--mask 0.5)",
    )
    parser.add_argument(
        "--control-start",
        type=real_number,
        default=0.0,
        metavar="X",
        help="fraction of the steps at which it starts (default: 0)",
    )
    parser.add_argument(
        "--control-end",
        type=real_number,
        default=1.0,
        metavar="X",
        help="fraction of the steps at which it ends (default: 1)",
    )
    parser.add_argument(
        "--guess-mode",
        action="store_true",
        help="the ControlNet guides without prompt; use a guidance scale of 3 to 5 (default: off)",
    )
    parser.add_argument(
        "--depth-seed",
        type=not_negative,
        default=0,
        metavar="N",
        help="seed of the noise that depth is estimated from, the same for all images (default: 0)",
    )


def synthesize(args: argparse.Namespace) -> int:
    """Runs `depthfm synthesize`: generates images that follow the depth of photos."""
    from tqdm import tqdm

    from ..inference.input_files import InputFailure
    from ..inference.prediction import PredictionSettings
    from ..inference.synthesis_files import SynthesisFolder
    from ..inference.synthesis_settings import SynthesisSettings

    settings = SynthesisSettings(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        start="image" if args.img2img else "noise" if args.mask is None else "mask",
        strength=args.strength,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        control_mode=args.control_mode,
        controlnet_conditioning_scale=tuple(args.control_scale or ()),
        control_guidance_start=args.control_start,
        control_guidance_end=args.control_end,
        guess_mode=args.guess_mode,
        height=args.height,
        width=args.width,
        depth=PredictionSettings(
            num_inference_steps=args.depth_steps,
            seed=args.depth_seed,
            processing_resolution=args.processing_resolution,
        ),
    )
    seeds = range(args.seed, args.seed + args.images_per_prompt)
    folder = SynthesisFolder(args.output)
    try:
        sources, failures = _read_sources(args, folder)
        for failure in failures:
            complain_about(failure)
        total = len(sources.files) + len(failures)
        images = 0
        failed = len(failures)
        with tqdm(total=len(sources.files) * len(seeds), unit="image", disable=None) as bar:
            for made in _synthesized(args, settings, sources, folder, seeds):
                if isinstance(made, InputFailure):
                    failed += 1
                    complain_about(made)
                    bar.update(len(seeds) - bar.n % len(seeds))  # the images that this input would have had
                    continue
                images += 1
                bar.update()
                if made.is_flagged:
                    complain(f"{made.file}: the safety checker took it for offensive and made it black")
    finally:
        folder.close()
    print(f"{images} images of {total - failed} of {total} inputs written to {args.output}")
    return 0 if failed == 0 else 1


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exits with a usage error if arguments exclude or need each other in a way that argparse does not check."""
    given_depth = "--depth" if args.depth is not None else "--log-depth" if args.log_depth is not None else None
    starts_from_photo = args.img2img or args.mask is not None
    if args.img2img and args.mask is not None:
        parser.error("argument --mask: not allowed with argument --img2img; --strength is for both")
    if args.strength is not None and not starts_from_photo:
        parser.error("argument --strength: needs --img2img or --mask")
    if not args.images and (starts_from_photo or given_depth is None):
        parser.error("IMAGE is missing" + ("" if starts_from_photo else " (or --depth, or --log-depth)"))
    if given_depth is not None and args.images and not starts_from_photo:
        parser.error(f"argument {given_depth}: IMAGE would not be used; leave it out, or add --img2img or --mask")
    if given_depth is not None and len(args.images) > 1:
        parser.error(f"argument {given_depth}: is the depth of one IMAGE, but there are {len(args.images)}")


def _read_sources(args: argparse.Namespace, folder: SynthesisFolder) -> tuple[SynthesisSources, list[InputFailure]]:
    """Finds the photos, and reads the depth and the mask that all of them share."""
    from ..inference.input_files import collect_inputs
    from ..inference.synthesis_inputs import SynthesisSources, read_depth_file, read_mask_file

    depth_file = args.log_depth if args.depth is None else args.depth
    log_depth = None if depth_file is None else read_depth_file(depth_file, args.depth is None, args.max_pixels)
    mask = None if args.mask is None else read_mask_file(args.mask, args.max_pixels)
    files, failures = collect_inputs(args.images or [depth_file], skip=folder.results())
    if depth_file is not None and len(files) > 1:
        raise ValueError(f"{args.images[0]} stands for {len(files)} images, but {depth_file} is the depth of one.")
    is_log = args.log_depth is not None
    sources = SynthesisSources(
        files, depth_file, log_depth, bool(args.images), args.mask, mask, is_log, args.max_pixels
    )
    return sources, failures


def _synthesized(
    args: argparse.Namespace,
    settings: SynthesisSettings,
    sources: SynthesisSources,
    folder: SynthesisFolder,
    seeds: Sequence[int],
) -> Iterator[SynthesizedImage | InputFailure]:
    """Loads the models, unless there are no inputs, and generates the images."""
    if not sources.files:
        return
    import torch

    from ..inference.synthesis_files import cut_prompts, describe_synthesis, synthesize_files
    from ..inference.synthesis_models import load_lora, load_synthesis_folders, resolve_synthesis_models
    from ..utils.files import file_sha256

    folders = resolve_synthesis_models(args.base, args.controlnet, find_model(args), args.variant)
    pipe: SynthesisPipeline = load_synthesis_folders(
        cast(Any, settings.pipeline_class),
        folders,
        args.device,
        getattr(torch, args.dtype),
        args.variant,
        args.offload,
    )
    pipe.set_progress_bar_config(disable=None, leave=False, unit="step")
    scales, nets = len(settings.controlnet_conditioning_scale), len(pipe.controlnets)
    if scales > 1 and scales != nets:
        raise ValueError(f"--control-scale is given {scales} times, but there are {nets} ControlNets.")
    models = {**folders.describe(), "variant": args.variant}
    if args.lora is not None:
        file = load_lora(pipe, args.lora)
        models["lora"] = {"name": file.name, "sha256": file_sha256(file)}
    for name, more in cut_prompts(pipe, settings).items():
        complain(f"the {name} is too long for Stable Diffusion: its last {more} tokens are not used")
    folder.begin_synthesis(describe_synthesis(pipe, settings, models, sources), sources)
    yield from synthesize_files(pipe, sources, folder, settings, seeds)
