"""Predicting the depth of image files into a folder, with a record of how; see `result_folder`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..export.images import check_colormap, colorize_depth, depth_to_uint16, save_image
from ..image_processing import load_image
from ..pictures import picture_array
from ..pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ..utils.files import file_sha256, save_array
from . import geometry_files
from .geometry_files import DEPTH_ONLY, ENDINGS, GeometrySettings, image_geometry
from .input_files import InputFailure
from .metric_files import ImageMetres, MetricSettings, measure_image
from .prediction import Prediction, PredictionSettings, predict_image
from .result_folder import ResultFolder, describe_environment, describe_scheduler, now, process_each

METADATA_FORMAT = "depthfm predict, 1"
SUFFIXES = ("_depth.npy", "_log_depth.npy", "_depth.png", "_color.png")
VALUES = {
    "_depth.npy": (
        "float32, height x width of the upright input, in [0, 1]: 0 is the nearest point of this image, 1 the "
        "farthest. exp(log depth), min-max normalised per image. Not metric, not comparable between images."
    ),
    "_log_depth.npy": (
        "float32, same size: the network's log depth, about [-1, 1], larger is farther. The true log depth is "
        "a * value + b, with a > 0 and b unknown for each image."
    ),
    "_depth.png": "16-bit grey: round(65535 * depth), 0 is near, 65535 is far.",
    "_color.png": "8-bit sRGB: the depth through the colour map of the run, its lower end near. For looking at.",
    "_color.mp4": (
        "The depth of a video through the colour map; 0 and 1 are the nearest and the farthest of each shot, the "
        "outermost 0.5 % of each frame not counted."
    ),
    "_depth_NUMBER.png": "16-bit grey: the same depth of one frame, counted from 0; 0 is near, 65535 is far.",
    "_depth_NUMBER.exr": "OpenEXR, 32-bit float, channel Z: the same depth of one frame; 0 is near, 1 is far.",
    "_log_depth.npz": (
        "log_depth: float32, frames x height x width: as in _log_depth.npy, but a and b are the same for all frames "
        "of a shot; time: seconds of each frame; shot: its number, from 0."
    ),
}


class PredictionFolder(ResultFolder):
    """A folder of predictions and its `metadata.json`; a prediction is replaced only by a later one for the same file.

    Args:
        path: The folder; made if it does not exist.
        colormap: Name of the matplotlib colour map of the coloured pictures.
        geometry: Which files are written of each image.

    Raises:
        ImportError: If a package for these files is not installed.
        OSError: If the folder cannot be made or written to.
        ValueError: If there is no such colour map, or the folder holds a `metadata.json` that `depthfm predict` did
            not write.
    """

    def __init__(self, path: str | os.PathLike[str], colormap: str, geometry: GeometrySettings = DEPTH_ONLY) -> None:
        check_colormap(colormap)
        geometry.check_packages()
        super().__init__(path, "predict", METADATA_FORMAT, {})
        self.colormap, self.geometry = colormap, geometry
        self._explain([file.name for file in self.results()])

    def _explain(self, files: Collection[str]) -> None:
        """Says in the record what the values in files mean."""
        for ending, meaning in (VALUES | geometry_files.VALUES).items():
            if any(name.endswith(ending) for name in files):
                self._record.values[ending] = meaning

    def add_prediction(
        self,
        source: Path,
        prediction: Prediction,
        metres: ImageMetres | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """Writes the files of one prediction, all or none, and records them.

        Files of an earlier result for the same image that are not written again are kept. The record says which, and
        how they were made.

        Args:
            source: The image file.
            prediction: Its prediction.
            metres: Its camera, and its depth in metres if that is known; `None`: its EXIF data are asked.
            max_pixels: Most pixels that the image may have; `None`: 120 million.
        """
        has_metres = metres is not None and metres.metres is not None
        endings = dict.fromkeys(SUFFIXES if "depth" in self.geometry.kinds else ())
        endings |= dict.fromkeys(ENDINGS["metres"] if has_metres else ())
        endings |= dict.fromkeys(ending for kind in self.geometry.geometry_kinds for ending in ENDINGS[kind])
        earlier = self.last_entry(source)
        name = self.choose_name(source, [*endings], earlier)
        depth = prediction.depth
        write: dict[str, Callable[[Path], object]] = {}
        if "depth" in self.geometry.kinds:
            write |= {
                f"{name}_depth.npy": lambda path: save_array(path, depth),
                f"{name}_log_depth.npy": lambda path: save_array(path, prediction.log_depth),
                f"{name}_depth.png": lambda path: save_image(path, depth_to_uint16(depth)),
                f"{name}_color.png": lambda path: save_image(path, colorize_depth(depth, self.colormap)),
            }
        entry: dict[str, Any] = {
            "name": name,
            "input": str(source),
            "input_sha256": file_sha256(source),
            "height": depth.shape[0],
            "width": depth.shape[1],
        }
        if metres is not None:
            write |= metres.writers(name)
            entry |= metres.describe()
        if self.geometry.geometry_kinds:
            known = metres or measure_image(source, prediction.log_depth, (), MetricSettings())
            image = partial(_rgb, source, max_pixels)
            geometry = image_geometry(prediction.log_depth, known, image, self.geometry)
            entry = geometry.describe() | known.describe() | entry
            write |= geometry.writers(name)
        self._explain(write)
        kept = self._kept(earlier, name, write)
        files = [*write, *(file for part in kept for file in part["files"])]
        self.add({**entry, "files": files, **({"kept": kept} if kept else {})}, write)

    def _kept(self, earlier: Mapping[str, Any] | None, name: str, written: Collection[str]) -> list[dict[str, Any]]:
        """Returns the files of earlier results that a new one of this name leaves in place, and how they were made."""
        if earlier is None or earlier["name"] != name:
            return []
        parts = [*earlier.get("kept", []), {"run": self._record.runs[earlier["run"]], "files": earlier["files"]}]
        older = {file for part in parts[:-1] for file in part["files"]}
        parts[-1]["files"] = [file for file in parts[-1]["files"] if file not in older]
        left = [{**part, "files": [file for file in part["files"] if file not in written]} for part in parts]
        return [part for part in left if part["files"]]

    def check_entry(self, entry: Mapping[str, Any]) -> None:
        """Checks what an entry says of files that earlier runs have made."""
        kept = entry.get("kept", [])
        if not isinstance(kept, list) or not all(
            isinstance(part, dict)
            and isinstance(part.get("run"), dict)
            and isinstance(part.get("files"), list)
            and set(map(str, part["files"])) <= set(entry["files"])
            for part in kept
        ):
            raise ValueError(f"`kept` of {entry['name']!r} is not a list of `run` and `files`")


def _rgb(source: Path, max_pixels: int | None) -> np.ndarray:
    """Reads an image file upright, H×W×3, uint8, sRGB."""
    image = picture_array(load_image(source, max_pixels))
    if image.dtype != np.uint8:
        scale = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
        image = np.rint(image / scale * 255).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3)))


def describe_run(pipe: DepthFMPipeline, settings: PredictionSettings, model: str, fingerprint: str) -> dict[str, Any]:
    """Describes what is needed to repeat a run, for `metadata.json`.

    Args:
        pipe: The pipeline that predicts.
        settings: The settings, defaults not yet filled in.
        model: Where the model came from.
        fingerprint: `model_fingerprint` of its folder.

    Returns:
        A dictionary that JSON can hold.
    """
    return {
        "started": now(),
        "model": {"name": model, "sha256": fingerprint, "rescale_self_attention": pipe.config.rescale_self_attention},
        "settings": asdict(settings.resolve(pipe)),
        "scheduler": describe_scheduler(pipe.scheduler),
        **describe_environment(pipe),
    }


def predict_files(
    pipe: DepthFMPipeline,
    inputs: Sequence[Path],
    folder: PredictionFolder,
    settings: PredictionSettings,
    max_pixels: int | None = None,
    metric: MetricSettings = MetricSettings(),  # noqa: B008
) -> Iterator[InputFailure | None]:
    """Predicts the depth of files, one after the other; a bad file does not stop the others.

    Args:
        pipe: The pipeline.
        inputs: Absolute paths of image files.
        folder: Where the results go; `begin_run` has been called.
        settings: How to predict.
        max_pixels: Most pixels that an input may have; `None`: 120 million.
        metric: What is known of the depth and the cameras of the inputs.

    Yields:
        For each input, `None` once its result is written, or why there is none.

    Raises:
        OSError: If the file of known points cannot be read.
        ValueError: If the known points do not fit the inputs.
    """
    known = metric.known_points(inputs)

    def predict(source: Path) -> Iterator[None]:
        if known is not None and source not in known:
            raise ValueError(f"{metric.anchors_file} has no point of this image")
        prediction = predict_image(pipe, source, settings, max_pixels=max_pixels)
        metres = measure_image(source, prediction.log_depth, (known or {}).get(source, ()), metric)
        folder.add_prediction(source, prediction, metres, max_pixels)
        yield None

    return process_each(inputs, predict)
