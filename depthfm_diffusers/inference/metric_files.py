"""What `depthfm predict` is told of the depth and the camera of its images, and the files in metres that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.images import metric_depth_scale, save_metric_depth
from ..focal_length import FocalLength, focal_length_pixels
from ..frames.rows import check_rows, read_rows
from ..metric import MetricFit, fit_points, values_at
from ..utils.files import save_array

ENDINGS = ("_metres.npy", "_metres.png")
VALUES = {
    "_metres.npy": (
        "float32, height x width of the upright input: metres along the optical axis. `metres` of the image says "
        "how they were found."
    ),
    "_metres.png": (
        "16-bit grey: metres = value * `metres_png_scale` of the image, also in the file's text chunk `depth_scale`; "
        "0 is no depth."
    ),
}
COLUMNS = ("file_name", "x", "y", "metres")
Point = tuple[float, float, float]


@dataclass(frozen=True)
class MetricSettings:
    """What is known of the images.

    Attributes:
        anchors: Points of known depth in the only image: x, y (pixels of the upright image) and metres.
        anchors_file: CSV file of such points in several images: columns file_name, x, y, metres.
        range_ratio: For images with a single point: how many times as far the farthest things are as the nearest.
        focal_length: In pixels of the images at full size; `None`: from EXIF data, or assumed.

    Raises:
        ValueError: If both `anchors` and `anchors_file` are given, or `range_ratio` without either, or a number is
            out of its range.
    """

    anchors: tuple[Point, ...] = ()
    anchors_file: Path | None = None
    range_ratio: float | None = None
    focal_length: float | None = None

    def __post_init__(self) -> None:
        """Checks what excludes another."""
        if self.anchors and self.anchors_file is not None:
            raise ValueError("Points come from --anchor or from a file, --anchors: give one of the two.")
        if self.range_ratio is not None and not self.has_points:
            raise ValueError("--range-ratio needs a point of known depth: --anchor X,Y,METRES.")
        for flag, value, lowest in (("range-ratio", self.range_ratio, 1), ("focal-length", self.focal_length, 0)):
            if value is not None and not lowest < value < math.inf:
                raise ValueError(f"--{flag} must be more than {lowest}, got {value:g}.")

    @property
    def has_points(self) -> bool:
        """Whether points of known depth are given."""
        return bool(self.anchors) or self.anchors_file is not None

    def known_points(self, inputs: Sequence[Path]) -> dict[Path, list[Point]] | None:
        """Returns the points of each input that has any; `None` if no metres are asked for.

        Args:
            inputs: Absolute paths.

        Raises:
            OSError: If the file of points cannot be read.
            ValueError: If there are points for the only image, but several images; or the file of points is of
                another form, or a name in it stands for several images.
        """
        if self.anchors_file is not None:
            return read_anchors(self.anchors_file, inputs)
        if not self.anchors:
            return None
        if len(inputs) > 1:
            raise ValueError(
                f"--anchor is for one image, got {len(inputs)}: for several, list the points in a CSV file with the "
                f"columns {', '.join(COLUMNS)}, and give --anchors FILE."
            )
        return {source: list(self.anchors) for source in inputs}


@dataclass(frozen=True)
class ImageMetres:
    """Metres and camera of one image.

    Attributes:
        focal_length: Of its camera.
        fov_x_deg: The horizontal field of view that follows, degrees.
        points: The points of known depth.
        fit: What was fitted to them; `None` without any.
        metres: H×W, float32; likewise.
    """

    focal_length: FocalLength
    fov_x_deg: float
    points: Sequence[Point] = ()
    fit: MetricFit | None = None
    metres: NDArray[np.float32] | None = None

    def describe(self) -> dict[str, Any]:
        """Describes them for the image's entry in `metadata.json`."""
        camera = {"pixels": self.focal_length.pixels, "source": self.focal_length.source, "fov_x_deg": self.fov_x_deg}
        entry: dict[str, Any] = {"focal_length": camera}
        if self.fit is not None and self.metres is not None:
            anchors = [
                {"x": x, "y": y, "metres": known, "fitted": float(at)}
                for (x, y, known), at in zip(self.points, values_at(self.metres, self.points), strict=True)
            ]
            entry["metres"] = {"source": "points of known depth", **asdict(self.fit), "anchors": anchors}
            entry["metres_png_scale"] = metric_depth_scale(self.metres)
        return entry

    def writers(self, name: str) -> dict[str, Callable[[Path], object]]:
        """Returns what writes each file, by its name; `name` is what the names begin with."""
        metres = self.metres
        if metres is None:
            return {}
        return {
            f"{name}_metres.npy": lambda path: save_array(path, metres),
            f"{name}_metres.png": lambda path: save_metric_depth(path, metres),
        }


def measure_image(
    source: Path, log_depth: NDArray[np.float32], points: Sequence[Point], settings: MetricSettings
) -> ImageMetres:
    """Finds the camera of an image, and its metres if points of known depth are given.

    Raises:
        ValueError: If the points do not fit the image or each other.
    """
    focal_length = focal_length_pixels(source, settings.focal_length)
    fov = focal_length.fov_x_deg(log_depth.shape[1])
    if not points:
        return ImageMetres(focal_length, fov)
    # Of a file, the ratio is for those of the images that have a single point.
    has_ratio = len(points) == 1 or settings.anchors_file is None
    fit = fit_points(log_depth, points, range_ratio=settings.range_ratio if has_ratio else None)
    return ImageMetres(focal_length, fov, points, fit, fit.apply(log_depth))


def describe_fit(metres: Mapping[str, Any]) -> str:
    """Says in one sentence how good a fit is, given what `ImageMetres.describe` says of it under `metres`."""
    points, inliers = metres["points"], metres["inliers"]
    if points == 1:
        return "metres from 1 point and the range that was given"
    covered = f"they cover {metres['range_covered']:.0%} of the image's depths, the rest is extrapolated"
    if points == 2:
        return f"metres from 2 points, which every prediction fits; {covered}"
    worst = max(metres["anchors"], key=lambda one: abs(one["fitted"] / one["metres"] - 1))
    text = f"metres from {points} points: median error {metres['median_relative_error']:.1%}; {covered}"
    if inliers < points:
        text += f"; {points - inliers} left out as wrong"
    where = f"{worst['x']:g},{worst['y']:g} ({worst['metres']:g} m, fitted {worst['fitted']:.3g} m)"
    return f"{text}; the farthest off is {where}"


def read_anchors(path: Path, inputs: Sequence[Path]) -> dict[Path, list[Point]]:
    """Reads the points of images from a CSV file.

    A row is of the input whose path ends in its `file_name`; rows of no input are passed over.

    Args:
        path: The file.
        inputs: Absolute paths.

    Raises:
        OSError: If it cannot be read.
        ValueError: If a column is missing, a cell is no number, or a name stands for several inputs.
    """
    try:
        rows = read_rows(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    check_rows(rows, path)
    found: dict[Path, list[Point]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            name = Path(row["file_name"])
            x, y, metres = (float(row[column]) for column in COLUMNS[1:])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, row {number}: the columns {', '.join(COLUMNS)} must hold a name and three numbers, "
                f"got {row!r}."
            ) from error
        matches = [source for source in inputs if source.parts[-len(name.parts) :] == name.parts]
        if len(matches) > 1:
            raise ValueError(f"{path}, row {number}: {name} stands for {matches[0]} and {matches[1]}: add the folder.")
        for source in matches:
            found.setdefault(source, []).append((x, y, metres))
    return found
