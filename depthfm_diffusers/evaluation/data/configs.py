"""What a benchmark is: which files, what their depth means, and the protocol by which they are scored.

Each benchmark is a TOML file in the folder `evaluation/benchmarks/`; a user's own file works as well.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..choices import ALIGNMENT_METHODS, ALIGNMENT_SPACES
from .file_lists import placeholders

BENCHMARK_FOLDER = Path(__file__).parents[1] / "benchmarks"
TEXT_TUPLES = ("image", "depth", "mask", "unknown")
READERS = ("listed", "nyuv2", "pairs", "shards")
DEPTH_FORMATS = ("png16", "npy", "float32")
UNKNOWN_MARKS = ("zero", "nan", "infinity")
# Rows and columns, [top:bottom, left:right]. The fractions are of the image's height and width, rounded down.
# "nyu-eigen" is the crop of Eigen et al. 2014 (arXiv 1406.2283) for 640×480 as the field's evaluation code has it
# (BTS, Marigold). Those of KITTI are Eigen's, and that of Garg et al. 2016 (arXiv 1603.04992).
NYU_EIGEN_CROP = (45, 471, 41, 601)
NYU_SIZE = (640, 480)
FRACTION_CROPS = {
    "kitti-eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}
CROPS = ("none", "nyu-eigen", *FRACTION_CROPS)
IMAGE_CROPS = ("none", "kitti-benchmark")


@dataclass(frozen=True)
class BenchmarkConfig:
    """A benchmark.

    In TOML, a field that is `None` is left out; tuples are arrays, and a text stands for an array of one text.

    Attributes:
        name: What `--benchmark` calls it; letters, digits, `-` and `_`.
        title: One line for tables.
        source: Where the data come from, and whom to cite.
        license: Terms of use of the data, in a line.
        reader: How the files are found and read.
            "listed": files named by patterns, in a folder or in an uncompressed `.tar`;
            "nyuv2": the same, or the official `nyu_depth_v2_labeled.mat`;
            "pairs": a folder that `depthfm_diffusers.frames.pairs` describes;
            "shards": WebDataset shards that `depthfm_diffusers.frames.shards` describes.
        alignment: Space in which predictions are aligned to the truth, one of `choices.ALIGNMENT_SPACES`.
        alignment_method: Method of the alignment, one of `choices.ALIGNMENT_METHODS`.
        images: How many images there must be; `None` takes as many as there are.
        min_depth: Metres; true depth must be above it to count.
        max_depth: Metres; the cap: true depth must be below it to count, and aligned predictions are clipped to it.
            `None` for no cap.
        crop: Which pixels count: one of `CROPS`, or (top, bottom, left, right) in pixels, bottom and right excluded.
        image_crop: What is cut from image and depth before anything else: "none"; or "kitti-benchmark", the lowest
            352 rows and middle 1216 columns.
        processing_resolution: Longer side at which the model works, pixels (0: the image's own), where the protocol
            fixes it; `None` leaves it to the model.

        key: Listed only: pattern of an image's name in results.
        file_list: Listed only: name of a text file beside the TOML file that lists the images (see
            `file_lists.read_file_list`); `None` takes every depth file in the data.
        image: Listed only: where an image is below the root; patterns, of which the first that exists is taken.
        depth: Listed only: the same for its depth.
        mask: Listed only: the same for a mask in `.npy`, not zero where depth is known; empty if there is none.
        depth_format: Listed only: "png16", 16-bit grey PNG; "npy", floating-point metres, H×W or H×W×1; "float32",
            bare little-endian numbers in metres, row by row, of the image's size.
        metres_per_count: Listed only: unit of "png16", metres.
        unknown: Listed only: what marks a pixel whose depth is not known, of `UNKNOWN_MARKS`. Zero, NaN or infinity
            that is not named here is an error, and so is a negative value.
        resize_image: Listed only: whether images of another size than their depth are resized to it (bilinear,
            antialiased); otherwise they are errors.
        image_size: Listed only: (width, height) that every image must have, pixels.
        intrinsics: Listed only: (fx, fy, cx, cy) in pixels of all images, pixel centres at integers.
        held_out_fraction: Shards only: only scenes that a training with this `--validation_fraction` has held out.

        ppd_min_depth: The protocol `ppd` only: in place of `min_depth`; `None` for the same.
        ppd_crop: The protocol `ppd` only: in place of `crop`; `None` for the same.
        ppd_max_gradient: The protocol `ppd` only, for the reader "listed" without `image_crop`: pixels are left out
            where the Sobel gradient of the stored depth is larger, metres, see `metrics.masks.gentle_pixels`; `None`
            leaves out none.

        folder: Where `file_list` is; the TOML file's folder, not a field in it.

    Raises:
        TypeError: If a field is of the wrong type.
        ValueError: If a field has a value that it cannot have, or does not go with the reader.
    """

    name: str
    title: str
    source: str
    license: str
    reader: str
    alignment: str
    alignment_method: str = "least_squares"
    images: int | None = None
    min_depth: float = 0.0
    max_depth: float | None = None
    crop: str | tuple[int, ...] = "none"
    image_crop: str = "none"
    processing_resolution: int | None = None
    key: str | None = None
    file_list: str | None = None
    image: tuple[str, ...] = ()
    depth: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    depth_format: str | None = None
    metres_per_count: float | None = None
    unknown: tuple[str, ...] = ()
    resize_image: bool = False
    image_size: tuple[int, ...] | None = None
    intrinsics: tuple[float, ...] | None = None
    held_out_fraction: float | None = None
    ppd_min_depth: float | None = None
    ppd_crop: str | tuple[int, ...] | None = None
    ppd_max_gradient: float | None = None
    folder: Path = field(default=BENCHMARK_FOLDER, compare=False)

    def __post_init__(self) -> None:
        """Checks types, values, and that they go together."""
        _check_types(self)
        _check_values(self)
        if self.reader in ("listed", "nyuv2"):
            _check_listed(self)
        else:
            _check_not_listed(self)

    def settings(self) -> dict[str, Any]:
        """Returns every field of types that JSON has, the same on every machine.

        Not `folder`, and not those of the protocol `ppd`: these are no settings of a run without it.
        """
        names = [f.name for f in fields(self) if f.name != "folder" and not f.name.startswith("ppd_")]
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def crop_of_ppd(self) -> str | tuple[int, ...]:
        """The crop of the protocol `ppd`."""
        return self.crop if self.ppd_crop is None else self.ppd_crop

    @property
    def min_depth_of_ppd(self) -> float:
        """The lower end of the valid depths of the protocol `ppd`, metres."""
        return self.min_depth if self.ppd_min_depth is None else self.ppd_min_depth


def benchmark_names() -> tuple[str, ...]:
    """Returns the names of the benchmarks that come with the package, in alphabetical order."""
    return tuple(sorted(path.stem for path in BENCHMARK_FOLDER.glob("*.toml")))


def load_benchmark(name_or_path: str | os.PathLike[str]) -> BenchmarkConfig:
    """Reads a benchmark's configuration.

    Args:
        name_or_path: One of `benchmark_names()`, or the path of a `.toml` file.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If a field is of the wrong type.
        ValueError: If there is no benchmark of that name, the file is not TOML, or a field is unknown, missing or has
            a value that it cannot have. Messages name the file and the field.
    """
    text = os.fspath(name_or_path)
    path = BENCHMARK_FOLDER / f"{text}.toml"
    if text not in benchmark_names():
        path = Path(text)
        if path.suffix != ".toml":
            names = ", ".join(benchmark_names())
            raise ValueError(
                f"There is no benchmark {text!r}; there are {names}. A `.toml` file can be given as well."
            )
        if not path.is_file():
            raise FileNotFoundError(f"There is no benchmark file {path}.")
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}.") from error
    known = {f.name: f for f in fields(BenchmarkConfig) if f.name != "folder"}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{path}: unknown field(s) {', '.join(unknown)}; there are {', '.join(known)}.")
    missing = [name for name, f in known.items() if f.default is MISSING and name not in values]
    if missing:
        raise ValueError(f"{path}: missing field(s) {', '.join(missing)}.")
    try:
        return BenchmarkConfig(**{name: _from_toml(name, value) for name, value in values.items()}, folder=path.parent)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


LISTED_FIELDS = (
    "key",
    "file_list",
    "image",
    "depth",
    "mask",
    "depth_format",
    "metres_per_count",
    "unknown",
    "resize_image",
    "image_size",
    "intrinsics",
)


def _from_toml(name: str, value: Any) -> Any:
    if name in TEXT_TUPLES and isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_array(value: Any, is_kind: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, tuple) and len(value) == (length or len(value)) and all(map(is_kind, value))


# What the value of a field must be, by the field's type, or by its name where the type does not say enough.
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (_is_text, "text"),
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "tuple[str, ...]": (lambda value: _is_array(value, _is_text), "text or an array of texts"),
    "image_size": (lambda value: _is_array(value, _is_whole, 2), "an array of 2 whole numbers"),
    "intrinsics": (lambda value: _is_array(value, _is_number, 4), "an array of 4 numbers"),
    "crop": (lambda value: _is_text(value) or _is_array(value, _is_whole, 4), "text or an array of 4 whole numbers"),
}
KINDS["ppd_crop"] = KINDS["crop"]


def _check_types(config: BenchmarkConfig) -> None:
    for name, annotation in ((f.name, str(f.type)) for f in fields(config) if f.name != "folder"):
        value = getattr(config, name)
        fits, wanted = KINDS.get(name) or KINDS[annotation.removesuffix(" | None")]
        if not (fits(value) or (value is None and annotation.endswith(" | None"))):
            raise TypeError(f"`{name}` must be {wanted}, got {value!r}.")


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise ValueError(message)


def _check_values(config: BenchmarkConfig) -> None:
    choices: dict[str, Sequence[str]] = {
        "reader": READERS,
        "alignment": ALIGNMENT_SPACES,
        "alignment_method": ALIGNMENT_METHODS,
        "image_crop": IMAGE_CROPS,
    }
    for name, crop in (("crop", config.crop), ("ppd_crop", config.crop_of_ppd)):
        if isinstance(crop, str):
            choices[name] = CROPS
            continue
        top, bottom, left, right = crop
        fits = 0 <= top < bottom and 0 <= left < right
        _require(fits, f"`{name}` must be top < bottom and left < right, none negative, got {list(crop)}.")
    for name, known in choices.items():
        value = getattr(config, name)
        fits = value in known or (name == "ppd_crop" and value is None)
        _require(fits, f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
    fits = re.fullmatch(r"[A-Za-z0-9_-]+", config.name) is not None
    _require(fits, f"`name` must be letters, digits, '-' and '_', got {config.name!r}.")
    _require(config.images is None or config.images >= 1, f"`images` must be at least 1, got {config.images}.")
    for name in ("processing_resolution", "min_depth", "ppd_min_depth", "ppd_max_gradient"):
        value = getattr(config, name)
        _require(value is None or value >= 0, f"`{name}` must not be negative, got {value}.")
    lowest = max(config.min_depth, config.min_depth_of_ppd)
    fits = config.max_depth is None or config.max_depth > lowest
    _require(fits, f"`max_depth` must be above min_depth, {lowest}, got {config.max_depth}.")
    fits = config.ppd_max_gradient is None or (config.reader == "listed" and config.image_crop == "none")
    _require(fits, "`ppd_max_gradient` is for the reader 'listed' without image_crop.")
    if (fraction := config.held_out_fraction) is not None:
        fits = config.reader == "shards"
        _require(fits, f"`held_out_fraction` is for the reader 'shards', got it with {config.reader!r}.")
        _require(0 < fraction < 1, f"`held_out_fraction` must be in (0, 1), got {fraction}.")


def _check_listed(config: BenchmarkConfig) -> None:
    for name in ("key", "image", "depth", "depth_format"):
        _require(bool(getattr(config, name)), f"`{name}` is missing: the reader {config.reader!r} needs it.")
    fits = config.reader != "nyuv2" or config.file_list is not None
    _require(fits, "`file_list` is missing: the reader 'nyuv2' needs it.")
    kind, unit = config.depth_format, config.metres_per_count
    _require(kind in DEPTH_FORMATS, f"`depth_format` must be one of {', '.join(DEPTH_FORMATS)}, got {kind!r}.")
    fits = (unit is not None) == (kind == "png16")
    _require(fits, "`metres_per_count` goes with the depth_format 'png16', and with no other.")
    _require(unit is None or unit > 0, f"`metres_per_count` must be positive, got {unit}.")
    marks = UNKNOWN_MARKS[:1] if kind == "png16" else UNKNOWN_MARKS
    for mark in config.unknown:
        _require(mark in marks, f"`unknown` must be of {', '.join(marks)} for {kind}, got {mark!r}.")
    if config.image_size is not None:
        _require(min(config.image_size) >= 1, f"`image_size` must be positive, got {list(config.image_size)}.")
    if config.intrinsics is not None:
        fits = config.image_size is not None
        _require(fits, "`intrinsics` needs image_size: they hold for images of that size.")
        fits = not config.resize_image
        _require(fits, "`intrinsics` does not go with resize_image: images of any size would come out.")
        fits = min(config.intrinsics[:2]) > 0
        _require(fits, f"`intrinsics` must have positive focal lengths, got {list(config.intrinsics)}.")
    patterns = {name: getattr(config, name) for name in ("image", "depth", "mask")} | {"key": (config.key or "",)}
    known = placeholders(config.depth[0])
    for name, values in patterns.items():
        for pattern in values:
            # Without a list, the names that stand in a path of a depth file are all there is.
            other = sorted(placeholders(pattern) ^ known if name == "depth" else placeholders(pattern) - known)
            if other and config.file_list is None:
                raise ValueError(f"`{name}`: {pattern!r} and the first pattern of depth differ in {', '.join(other)}.")


def _check_not_listed(config: BenchmarkConfig) -> None:
    for name in LISTED_FIELDS:
        default = next(f.default for f in fields(config) if f.name == name)
        fits = getattr(config, name) == default
        _require(fits, f"`{name}` is not for the reader {config.reader!r}: its frames say that themselves.")
