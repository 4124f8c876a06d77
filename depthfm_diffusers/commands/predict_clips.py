"""The part of `depthfm predict` that is for videos and image sequences."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.choices import CLIP_FRAME_FORMATS
from .arguments import positive
from .terminal import complain

if TYPE_CHECKING:
    from ..inference.input_files import InputFailure
    from ..inference.prediction import PredictionSettings
    from ..inference.prediction_files import PredictionFolder
    from ..inference.video.clips import Clip
    from ..pipelines.depthfm.pipeline_depthfm import DepthFMPipeline


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is read of a clip, and what is written beside NAME_color.mp4."""
    group = parser.add_argument_group("videos")
    group.add_argument(
        "--sequence-fps",
        type=positive_rate,
        metavar="FPS",
        help="the images of each folder are the frames of one clip, FPS a second, in the order of the numbers in "
        "their names (default: each image is for itself)",
    )
    group.add_argument(
        "--target-fps",
        type=positive_rate,
        metavar="FPS",
        help="most frames a second; frames between are left out (default: all frames)",
    )
    group.add_argument("--max-frames", type=positive, metavar="N", help="most frames of a clip (default: all)")
    group.add_argument(
        "--save-frames",
        type=_frame_formats,
        default=(),
        metavar="FORMATS",
        help="beside NAME_color.mp4, comma-separated: png (NAME_depth_000000.png, ..., 16 bit), exr (the same as "
        "OpenEXR, 32 bit), npz (NAME_log_depth.npz: log_depth, time, shot) (default: none)",
    )


def split_clips(args: argparse.Namespace, inputs: list[Path]) -> tuple[list[Path], dict[Path, Callable[[], Clip]]]:
    """Tells images from clips.

    Args:
        args: The arguments of the command.
        inputs: The files that they name.

    Returns:
        The images that are predicted each for itself; and for each clip what opens it, by its file, or by its folder
        if it is a sequence of images.

    Raises:
        ValueError: If an argument that is only for clips is given, and there is none.
    """
    from ..inference.video.clips import ClipLimits, ImageSequence, VideoFile, is_video

    limits = ClipLimits(args.target_fps, args.max_frames, args.max_pixels)
    clips: dict[Path, Callable[[], Clip]] = {
        path: partial(VideoFile, path, limits) for path in inputs if is_video(path)
    }
    images = [path for path in inputs if path not in clips]
    if args.sequence_fps is not None:
        folders: defaultdict[Path, list[Path]] = defaultdict(list)
        for path in images:
            folders[path.parent].append(path)
        for folder, files in folders.items():
            clips[folder] = partial(ImageSequence, folder, files, args.sequence_fps, limits)
        images = []
    flags = [f"--{name.replace('_', '-')}" for name in ("target_fps", "max_frames", "save_frames") if vars(args)[name]]
    if flags and inputs and not clips:
        raise ValueError(
            f"{', '.join(flags)}: only for videos and sequences of images, and no input is one. For images that are "
            "the frames of a clip, add --sequence-fps FPS."
        )
    return images, clips


def predict_clips(
    args: argparse.Namespace,
    pipe: DepthFMPipeline,
    settings: PredictionSettings,
    clips: Mapping[Path, Callable[[], Clip]],
    folder: PredictionFolder,
    run: Mapping[str, Any],
) -> Iterator[InputFailure | None]:
    """Predicts clips, one after the other, with a progress bar for each; a bad clip does not stop the others.

    Yields:
        For each clip, `None` once its files are written, or why there are none.
    """
    from tqdm import tqdm

    from ..inference.result_folder import INPUT_ERRORS, input_failure
    from ..inference.video.results import ClipPredictor, ClipResult

    predictor = ClipPredictor(pipe, settings, folder, run, args.save_frames)
    for path, open_clip in clips.items():
        try:
            clip = open_clip()
            events = predictor.predict(clip)
            first = next(events)
            done = first if isinstance(first, int) else 0
            with tqdm(desc=path.name, total=clip.num_frames, initial=done, unit="frame", disable=None) as bar:
                for event in (first, *events) if isinstance(first, ClipResult) else events:
                    if isinstance(event, ClipResult):
                        if event.message:
                            complain(f"{path}: {event.message}")
                    else:
                        bar.update(event - bar.n)
        except INPUT_ERRORS as error:
            yield input_failure(path, error)
        else:
            yield None


def positive_rate(text: str) -> Fraction:
    """Reads a number of frames a second, such as 25, 29.97 or 30000/1001, as an argparse type."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"must be a positive number or fraction, got {text!r}")
    return rate


def _frame_formats(text: str) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(text.split(",")))
    if not set(formats) <= set(CLIP_FRAME_FORMATS):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(CLIP_FRAME_FORMATS)}, got {text!r}")
    return formats
