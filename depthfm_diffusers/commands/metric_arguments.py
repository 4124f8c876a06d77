"""Arguments of `depthfm predict` that say what is known of the depth and the camera of images."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import real_number
from .terminal import complain

if TYPE_CHECKING:
    from ..inference.metric_files import MetricSettings
    from ..inference.prediction_files import PredictionFolder


def add_metric_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds points of known depth and the focal length."""
    group = parser.add_argument_group(
        "metres",
        "With points of known depth, NAME_metres.npy (float32) and NAME_metres.png (16 bit, millimetres if they fit) "
        "are written as well; see docs/metric.md.",
    )
    group.add_argument(
        "--anchor",
        type=anchor,
        action="append",
        default=[],
        metavar="X,Y,METRES",
        help="a pixel of the upright image, counted from 0,0 at the top left, and its depth; at least two, at "
        "different depths, with one image",
    )
    group.add_argument(
        "--anchors",
        type=Path,
        metavar="FILE.csv",
        help="the points of several images, columns file_name, x, y, metres",
    )
    group.add_argument(
        "--range-ratio",
        type=real_number,
        metavar="X",
        help="with a single point: how many times as far the farthest things are as the nearest, as a guess",
    )
    group.add_argument(
        "--focal-length",
        type=real_number,
        metavar="PIXELS",
        help="focal length in pixels of the input (default: by its EXIF data, or else a field of view of 55 degrees)",
    )


def metric_settings(args: argparse.Namespace) -> MetricSettings:
    """Returns the settings that `add_metric_arguments` stands for.

    Raises:
        ValueError: If an argument excludes another, or is out of its range.
    """
    from ..inference.metric_files import MetricSettings

    return MetricSettings(tuple(args.anchor), args.anchors, args.range_ratio, args.focal_length)


def report_fits(folder: PredictionFolder, inputs: list[Path], settings: MetricSettings) -> None:
    """Says on stderr how good the fits to known points are."""
    from ..inference.metric_files import describe_fit

    if settings.has_points:
        for source in inputs:
            entry = folder.last_entry(source)
            if entry is not None and "anchors" in entry.get("metres", {}):
                complain(f"{source}: {describe_fit(entry['metres'])}")


def anchor(text: str) -> tuple[float, float, float]:
    """Reads a point of known depth, as an argparse type."""
    try:
        x, y, metres = map(float, text.split(","))
    except ValueError:
        metres = math.nan
    if not metres > 0:
        raise argparse.ArgumentTypeError(f"must be X,Y,METRES with METRES above 0, got {text!r}")
    return x, y, metres
