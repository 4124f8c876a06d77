"""Arguments of what `depthfm predict --save` writes beside depth maps."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..utils.choices import SAVED_KINDS
from .arguments import real_number

if TYPE_CHECKING:
    from ..inference.geometry_files import GeometrySettings


def add_geometry_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which files are written, and how metres, meshes and stereo pictures are made."""
    group = parser.add_argument_group(
        "geometry",
        "Further files; see docs/geometry.md. The model does not predict metres: without --depth-range and --anchor a "
        "range is assumed, and said so.",
    )
    group.add_argument(
        "--save",
        type=saved_kinds,
        default=("depth",),
        metavar="KIND,...",
        help=f"what to write, some of {', '.join(SAVED_KINDS)}, with commas between them (default: depth)",
    )
    group.add_argument(
        "--depth-range",
        type=depth_range,
        metavar="NEAR,FAR",
        help="metres of the nearest and the farthest point of each image (default: 1,10 is assumed)",
    )
    group.add_argument(
        "--max-depth",
        type=real_number,
        metavar="METRES",
        help="leave points that are farther away out of meshes and points, such as sky (default: none)",
    )
    for flag, metavar, text in (
        ("--edge-tolerance", "X", "relative difference in inverse depth that cuts a mesh (default: 0.04)"),
        ("--edge-width", "X", "width of blurred edges, whose points are left out, as a share of the longer side"),
        ("--max-angle", "DEGREES", "angle of view from which triangles are left out, 90 for edge-on"),
        ("--stereo-shift", "X", "distance between the two views of the nearest point, as a share of the width"),
    ):
        group.add_argument(flag, type=real_number, metavar=metavar, help=text)


def geometry_settings(args: argparse.Namespace) -> GeometrySettings:
    """Returns the settings that `add_geometry_arguments` stands for.

    Raises:
        ValueError: If a value is out of its range, or known points are given beside a range.
    """
    from ..export.stereo import StereoSettings
    from ..export.surfaces import SurfaceSettings
    from ..inference.geometry_files import GeometrySettings

    if args.depth_range is not None and (args.anchor or args.anchors is not None):
        raise ValueError("--depth-range and points of known depth both say what the metres are: give one of the two.")
    surface = {
        "max_depth": args.max_depth,
        "tolerance": args.edge_tolerance,
        "edge_width": args.edge_width,
        "max_angle": args.max_angle,
    }
    stereo = {"max_shift": args.stereo_shift}
    return GeometrySettings(
        args.save,
        args.depth_range,
        SurfaceSettings(**{name: value for name, value in surface.items() if value is not None}),
        StereoSettings(**{name: value for name, value in stereo.items() if value is not None}),
    )


def saved_kinds(text: str) -> tuple[str, ...]:
    """Reads kinds of files with commas between them, as an argparse type."""
    kinds = tuple(dict.fromkeys(kind.strip() for kind in text.split(",")))
    for kind in kinds:
        if kind not in SAVED_KINDS:
            choices = ", ".join(map(repr, SAVED_KINDS))
            raise argparse.ArgumentTypeError(f"invalid choice: {kind!r} (choose from {choices})")
    return kinds


def depth_range(text: str) -> tuple[float, float]:
    """Reads two depths in metres with a comma between them, as an argparse type."""
    try:
        near, far = map(float, text.split(","))
    except ValueError:
        near = far = 0.0
    if not 0 < near < far < float("inf"):
        raise argparse.ArgumentTypeError(f"must be NEAR,FAR in metres with 0 < NEAR < FAR, got {text!r}")
    return near, far
