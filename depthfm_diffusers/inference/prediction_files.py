"""Predicting the depth of image files into a folder, with a record of how; see `result_folder`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..export.images import check_colormap, colorize_depth, depth_to_uint16, save_image
from ..pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ..utils.files import file_sha256, save_array
from . import metric_files
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

    Raises:
        OSError: If the folder cannot be made or written to.
        ValueError: If there is no such colour map, or the folder holds a `metadata.json` that `depthfm predict` did
            not write.
    """

    def __init__(self, path: str | os.PathLike[str], colormap: str) -> None:
        check_colormap(colormap)
        super().__init__(path, "predict", METADATA_FORMAT, VALUES)
        self.colormap = colormap
        if any(file.name.endswith(metric_files.ENDINGS) for file in self.results()):
            self._record.values |= metric_files.VALUES

    def add_prediction(self, source: Path, prediction: Prediction, metres: ImageMetres | None = None) -> None:
        """Writes the files of one prediction, all or none, and records them.

        Args:
            source: The image file.
            prediction: Its prediction.
            metres: Its camera, and its depth in metres if that is known.
        """
        has_metres = metres is not None and metres.metres is not None
        endings = SUFFIXES + (metric_files.ENDINGS if has_metres else ())
        name = self.choose_name(source, endings, self.last_entry(source))
        depth = prediction.depth
        files = [name + ending for ending in SUFFIXES]
        write: list[Callable[[Path], object]] = [
            lambda path: save_array(path, depth),
            lambda path: save_array(path, prediction.log_depth),
            lambda path: save_image(path, depth_to_uint16(depth)),
            lambda path: save_image(path, colorize_depth(depth, self.colormap)),
        ]
        entry: dict[str, Any] = {
            "name": name,
            "input": str(source),
            "input_sha256": file_sha256(source),
            "height": depth.shape[0],
            "width": depth.shape[1],
        }
        writers = dict(zip(files, write, strict=True))
        if metres is not None:
            writers |= metres.writers(name)
            entry |= metres.describe()
        if has_metres:
            self._record.values |= metric_files.VALUES
        self.add({**entry, "files": [*writers]}, writers)


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
        folder.add_prediction(source, prediction, metres)
        yield None

    return process_each(inputs, predict)
