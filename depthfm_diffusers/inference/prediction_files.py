"""Predicting the depth of image files into a folder, with a record of what made each result; see `result_folder`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..export.images import (
    check_colormap,
    colorize_depth,
    depth_to_uint16,
    save_image,
)
from ..image_processing import load_image
from ..pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ..utils.files import file_sha256, save_array
from .input_files import InputFailure
from .result_folder import (
    INPUT_ERRORS,
    ResultFolder,
    describe_environment,
    describe_scheduler,
    input_failure,
    now,
)

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
}


@dataclass(frozen=True)
class PredictionSettings:
    """What a run predicts with.

    Attributes:
        num_inference_steps: Steps from image to depth; `None` is the model's default.
        ensemble_size: Members whose log depths are averaged.
        seed: Seed of the noise, set anew for each image, so that a result does not depend on what else is in the run.
        processing_resolution: Longer side in pixels at which the network sees the image, 0 for that of the image;
            `None` is the model's default.
        batch_size: Ensemble members that go through the network at once.
        colormap: Name of the matplotlib colour map of the coloured pictures.
    """

    num_inference_steps: int | None = None
    ensemble_size: int = 1
    seed: int = 0
    processing_resolution: int | None = None
    batch_size: int = 1
    colormap: str = "Spectral"

    def __post_init__(self) -> None:
        """Checks what can be checked before a model is loaded.

        Raises:
            ValueError: If a value is out of its range.
        """
        for name, lowest in {"num_inference_steps": 1, "ensemble_size": 1, "batch_size": 1}.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"`{name}` must be at least {lowest}, got {value}.")
        if self.processing_resolution is not None and self.processing_resolution < 0:
            raise ValueError(f"`processing_resolution` must be 0 or more pixels, got {self.processing_resolution}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"`seed` must be from 0 to 2**63 - 1, got {self.seed}.")
        check_colormap(self.colormap)


class PredictionFolder(ResultFolder):
    """A folder of predictions and its `metadata.json`; a prediction is replaced only by a later one for the same file.

    Args:
        path: The folder; made if it does not exist.

    Raises:
        OSError: If it cannot be made or written to.
        ValueError: If it holds a `metadata.json` of other origin, which a run would have to overwrite.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "predict", METADATA_FORMAT, VALUES)

    def add_prediction(self, source: Path, depth: np.ndarray, log_depth: np.ndarray, colormap: str) -> None:
        """Writes the files of one prediction, all or none, then `metadata.json`.

        Args:
            source: The image file.
            depth: H×W in [0, 1].
            log_depth: H×W.
            colormap: Name of a matplotlib colour map.
        """
        name = self.choose_name(source, SUFFIXES, self.last_entry(source))
        files = [name + ending for ending in SUFFIXES]
        write: list[Callable[[Path], object]] = [
            lambda path: save_array(path, depth.astype(np.float32)),
            lambda path: save_array(path, log_depth.astype(np.float32)),
            lambda path: save_image(path, depth_to_uint16(depth)),
            lambda path: save_image(path, colorize_depth(depth, colormap)),
        ]
        entry = {
            "name": name,
            "input": str(source),
            "input_sha256": file_sha256(source),
            "height": depth.shape[0],
            "width": depth.shape[1],
            "files": files,
        }
        self.add(entry, dict(zip(files, write, strict=True)))


def describe_run(pipe: DepthFMPipeline, settings: PredictionSettings, model: str, fingerprint: str) -> dict[str, Any]:
    """What is needed to repeat a run, for `metadata.json`.

    Args:
        pipe: The pipeline that predicts.
        settings: The settings, defaults not yet filled in.
        model: Where the model came from.
        fingerprint: `model_fingerprint` of its folder.

    Returns:
        A dictionary that JSON can hold.
    """
    config = pipe.config
    resolved = asdict(settings)
    resolved["num_inference_steps"] = settings.num_inference_steps or config.default_num_inference_steps
    if settings.processing_resolution is None:
        resolved["processing_resolution"] = config.default_processing_resolution
    return {
        "started": now(),
        "model": {"name": model, "sha256": fingerprint, "rescale_self_attention": config.rescale_self_attention},
        "settings": resolved,
        "scheduler": describe_scheduler(pipe.scheduler),
        **describe_environment(pipe),
    }


def predict_files(
    pipe: DepthFMPipeline, inputs: Sequence[Path], folder: PredictionFolder, settings: PredictionSettings
) -> Iterator[InputFailure | None]:
    """Predicts the depth of files, one after the other; a bad file does not stop the others.

    Args:
        pipe: The pipeline.
        inputs: Absolute paths of image files.
        folder: Where the results go; `begin_run` has been called.
        settings: What to predict with.

    Yields:
        For each input, `None` once its result is written, or why there is none.
    """
    for source in inputs:
        try:
            prediction, log_depth, *_ = pipe(
                load_image(source),
                num_inference_steps=settings.num_inference_steps,
                ensemble_size=settings.ensemble_size,
                processing_resolution=settings.processing_resolution,
                batch_size=settings.batch_size,
                # Drawn on the CPU whatever the device, so that the noise is the same on all.
                generator=torch.Generator("cpu").manual_seed(settings.seed),
                return_dict=False,
            )
            folder.add_prediction(source, prediction[0, ..., 0], log_depth[0, ..., 0], settings.colormap)
        except INPUT_ERRORS as error:
            yield input_failure(source, error)
        else:
            yield None
