"""Completing the depth of image files into a folder, with a record of how; see `result_folder`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..export.images import check_colormap, colorize_depth, metric_depth_scale, save_image, save_metric_depth
from ..frames import EncodedFrame
from ..frames.decoding import METRES_PER_COUNT, decode_depth, frame_error, open_picture, orient_with_depth
from ..pipelines.depthfm.pipeline_depthfm_completion import DepthFMDepthCompletionPipeline
from ..utils.files import file_sha256, save_array
from ..utils.folders import is_junk
from ..utils.imports import import_optional
from .input_files import InputFailure
from .prediction import PredictionSettings
from .result_folder import ResultFolder, process_each

METADATA_FORMAT = "depthfm complete, 1"
SUFFIXES = ("_completed.npy", "_completed.png", "_uncertainty.npy", "_completed_color.png")
VALUES = {
    "_completed.npy": "float32, height x width of the input: depth along the optical axis, metres.",
    "_completed.png": "16-bit grey: depth in units of `png_scale` metres, which each image has; larger is farther.",
    "_uncertainty.npy": "float32, same size: standard deviation of the error of the depth, metres.",
    "_completed_color.png": "8-bit sRGB: the depth through the colour map of the run, its lower end near. To look at.",
}
DEPTH_SUFFIXES = (".png", ".npy", ".exr", ".tif", ".tiff")
# Names that OpenEXR files of one depth map give it, in the order in which they are looked for.
EXR_CHANNELS = ("Z", "depth.Z", "Depth.Z", "depth", "Y", "V", "R")


@dataclass(frozen=True)
class CompletionSettings:
    """How depth is completed, beside how it is predicted.

    Attributes:
        method: See `DepthFMDepthCompletionPipeline.__call__`, as all others.
        num_optimization_steps: Likewise.
        guided_flow: Likewise.
        correct_residual: Likewise.
        keep_known: Likewise.
        max_seconds: Likewise, for each image.
        scale: Metres per stored unit of the depth files; `None`: 0.001 for integers, 1 for floating point.

    Raises:
        ValueError: If the scale is not positive.
    """

    method: str = "auto"
    num_optimization_steps: int = 0
    guided_flow: bool = False
    correct_residual: bool = True
    keep_known: bool = False
    max_seconds: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked before a model is loaded."""
        for name in ("scale", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")

    def call_arguments(self) -> dict[str, Any]:
        """Returns the arguments of `DepthFMDepthCompletionPipeline.__call__`."""
        return {name: value for name, value in asdict(self).items() if name != "scale"}


class CompletionFolder(ResultFolder):
    """A folder of completed depth and its `metadata.json`.

    Args:
        path: The folder; made if it does not exist.
        colormap: Name of the matplotlib colour map of the coloured pictures.

    Raises:
        OSError: If the folder cannot be made or written to.
        ValueError: If there is no such colour map, or the folder holds a `metadata.json` that `depthfm complete` did
            not write.
    """

    def __init__(self, path: str | os.PathLike[str], colormap: str) -> None:
        check_colormap(colormap)
        super().__init__(path, "complete", METADATA_FORMAT, VALUES)
        self.colormap = colormap

    def add_completion(
        self,
        source: Path,
        known: Path,
        depth: NDArray[np.float32],
        uncertainty: NDArray[np.float32],
        fit: Mapping[str, Any],
    ) -> None:
        """Writes the files of one result, all or none, and records them.

        Args:
            source: The image file.
            known: The file of its known depth.
            depth: H×W, metres.
            uncertainty: H×W, metres.
            fit: How it was fitted, for the record.
        """
        name = self.choose_name(source, SUFFIXES, self.last_entry(source))
        files = [name + ending for ending in SUFFIXES]
        low, high = float(depth.min()), float(depth.max())
        shown = ((depth - low) / (high - low) if high > low else np.zeros_like(depth)).clip(0, 1)
        write: list[Callable[[Path], object]] = [
            lambda path: save_array(path, depth),
            lambda path: save_metric_depth(path, depth),
            lambda path: save_array(path, uncertainty),
            lambda path: save_image(path, colorize_depth(shown, self.colormap)),
        ]
        entry = {
            "name": name,
            "input": str(source),
            "input_sha256": file_sha256(source),
            "depth": str(known),
            "depth_sha256": file_sha256(known),
            "height": depth.shape[0],
            "width": depth.shape[1],
            "png_scale": metric_depth_scale(depth),
            "fit": dict(fit),
            "files": files,
        }
        self.add(entry, dict(zip(files, write, strict=True)))


def pair_depth_files(inputs: Iterable[Path], depth: Path) -> tuple[dict[Path, Path], list[InputFailure]]:
    """Finds the depth file of each image.

    Args:
        inputs: The image files.
        depth: One file, for one image; or a folder, in which the file of an image has its name without the suffix.

    Returns:
        The depth file by the image file, and the images that have none.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it is one file for several images.
    """
    inputs = list(inputs)
    if not depth.exists():
        raise FileNotFoundError(f"--depth {depth}: there is no such file or folder.")
    if depth.is_file():
        if len(inputs) > 1:
            raise ValueError(
                f"--depth {depth} is one file for {len(inputs)} images: give the folder that has one for each, of the "
                "same name as the image."
            )
        return dict.fromkeys(inputs, depth), []
    files: dict[str, list[Path]] = {}
    for path in sorted(depth.iterdir()):
        if path.suffix.lower() in DEPTH_SUFFIXES and not is_junk(path.name):
            files.setdefault(path.stem, []).append(path)
    pairs, failures = {}, []
    for source in inputs:
        found = [path for path in files.get(source.stem, []) if path.absolute() != source]
        if len(found) == 1:
            pairs[source] = found[0]
        else:
            names = " and ".join(path.name for path in found)
            problem = f"{names} in {depth} could both be its depth" if found else f"{depth} has no depth for it"
            expected = ", ".join(source.stem + suffix for suffix in DEPTH_SUFFIXES)
            failures.append(InputFailure(str(source), f"{problem}: there must be one of {expected}"))
    return pairs, failures


def read_image_and_depth(
    source: Path, known: Path, scale: float | None, max_pixels: int | None = None
) -> tuple[Image.Image, NDArray[np.float32]]:
    """Reads an image and its known depth, turned alike.

    Args:
        source: The image file.
        known: Its depth: 16-bit grey PNG or TIFF, 32-bit floating-point TIFF, `.npy` or OpenEXR.
        scale: Metres per stored unit; `None`: 0.001 for integers, 1 for floating point.
        max_pixels: Most pixels that a picture may have; `None`: 120 million.

    Returns:
        The image, and its depth H×W in metres as it is stored: holes are what they are.

    Raises:
        OSError: If a file cannot be read.
        ImportError: If the depth is OpenEXR, and that package is not installed.
        ValueError: If a file cannot be used.
    """
    is_exr = known.suffix.lower() == ".exr"
    content = b"" if is_exr else known.read_bytes()
    encoded = EncodedFrame(
        source.stem, str(source.parent), "", source.read_bytes(), content, source.name, known.name, {}, max_pixels
    )
    stored, orientation = (_read_exr(known), 1) if is_exr else decode_depth(encoded)
    picture = open_picture(encoded, encoded.image, encoded.image_field)
    image = orient_with_depth(encoded, picture, stored.shape, orientation)
    if stored.shape != image.size[::-1]:
        sizes = [f"{height}x{width}" for height, width in (stored.shape, image.size[::-1])]
        raise frame_error(
            encoded.key,
            encoded.origin,
            f"{known.name} is {sizes[0]} pixels, {source.name} is {sizes[1]} (height x width): the depth must be "
            "projected into the image first.",
        )
    if scale is None:
        scale = METRES_PER_COUNT if stored.dtype.kind in "iu" else 1.0
    return image, (stored.astype(np.float64) * scale).astype(np.float32)


def complete_files(
    pipe: DepthFMDepthCompletionPipeline,
    pairs: Mapping[Path, Path],
    folder: CompletionFolder,
    prediction: PredictionSettings,
    settings: CompletionSettings,
    max_pixels: int | None = None,
) -> Iterator[InputFailure | None]:
    """Completes the depth of files, one after the other; a bad file does not stop the others.

    Args:
        pipe: The pipeline.
        pairs: The depth file by the image file, absolute paths.
        folder: Where the results go; `begin_run` has been called.
        prediction: How the model predicts.
        settings: How to complete.
        max_pixels: Most pixels that an input may have; `None`: 120 million.

    Yields:
        For each input, `None` once its result is written, or why there is none.
    """

    def complete(source: Path) -> Iterator[None]:
        image, known = read_image_and_depth(source, pairs[source], settings.scale, max_pixels)
        try:
            depths, uncertainties, fits = pipe(
                image, known, **prediction.call_arguments(), **settings.call_arguments(), return_dict=False
            )
        except ValueError as error:
            raise ValueError(f"{pairs[source].name}: {error}") from error
        depth, uncertainty = depths[0, ..., 0], uncertainties[0, ..., 0]
        folder.add_completion(source, pairs[source], depth, uncertainty, asdict(fits[0]))
        yield None

    return process_each(pairs, complete)


def _read_exr(path: Path) -> NDArray[np.float32]:
    """Reads the depth channel of an OpenEXR file: H×W."""
    openexr = import_optional("OpenEXR", "exr", "Reading OpenEXR files")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with openexr.File(str(path), separate_channels=True) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
    except Exception as error:  # the library raises errors of several types
        raise ValueError(f"{path} is not a readable OpenEXR file ({error}).") from error
    names = [name for name in EXR_CHANNELS if name in channels] or (list(channels) if len(channels) == 1 else [])
    if not names:
        raise ValueError(
            f"{path} has the channels {', '.join(channels)}, none of which is a depth ({', '.join(EXR_CHANNELS)})."
        )
    pixels: NDArray[np.float32] = np.asarray(channels[names[0]], dtype=np.float32)
    # Compositors write infinity, or a number as large, where there is no surface.
    return np.where(pixels < 1e9, pixels, 0).astype(np.float32)
