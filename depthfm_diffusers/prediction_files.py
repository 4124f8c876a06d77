"""Predicting the depth of image files into a folder, with a record of what made each result.

What the folder holds afterwards is described in `metadata.json`, which every run adds to: `runs` has the settings of
each run, `images` the results, each naming its run. A result is replaced only by a later one for the same file;
nothing else that is in the folder is ever overwritten.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import platform
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL
import torch
import transformers

from . import __version__
from .export import (
    atomic_write,
    check_colormap,
    colorize_depth,
    depth_to_uint16,
    save_array,
    save_image,
    save_json,
)
from .image_processing import load_image
from .input_files import InputFailure
from .pipeline_depthfm import DepthFMPipeline

METADATA_NAME = "metadata.json"
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


class PredictionFolder:
    """A folder of results and its `metadata.json`.

    Args:
        path: The folder; made if it does not exist.

    Raises:
        OSError: If it cannot be made or written to.
        ValueError: If it holds a `metadata.json` of other origin, which a run would have to overwrite.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self._is_new = not self.path.exists()
        if not self._is_new and not self.path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "the output folder is a file", str(path))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path / ".depthfm-probe"):
                pass
            (self.path / ".depthfm-probe").unlink()
        except OSError as error:
            raise type(error)(error.errno, f"cannot write to the output folder: {error.strerror}", str(path)) from None
        self._runs, self._images = self._read()
        self._present = {_key(entry) for entry in os.listdir(self.path)}
        self._inputs: set[str] = set()

    def results(self) -> list[Path]:
        """The files that earlier runs left here, as absolute paths."""
        return [self.path / file for entry in self._images for file in entry["files"]]

    def begin_run(self, run: dict[str, Any], inputs: Iterable[Path]) -> None:
        """Starts a run; the results added from now on are its.

        Args:
            run: Settings and versions, for `metadata.json`.
            inputs: Absolute paths of all inputs of the run, none of which will be overwritten.
        """
        self._runs.append(run)
        self._inputs = {_key(path.name) for path in inputs if path.parent == self.path}

    def choose_name(self, source: Path) -> str:
        """The NAME in the file names of a result: the same as before for the same source, otherwise one that is free.

        Tried in turn: the file's name without suffix, the same with the suffix appended (`a_png`), then numbers from
        2. A name is free if none of its files exists, letter case and Unicode forms aside, save as an earlier result
        for `source`, and none is among the inputs.

        Args:
            source: The image file.

        Returns:
            The name.
        """
        earlier = next((entry for entry in reversed(self._images) if entry["input"] == str(source)), None)
        own = {_key(file) for file in earlier["files"]} if earlier else set()

        def is_free(name: str) -> bool:
            keys = {_key(name + ending) for ending in SUFFIXES}
            return not keys & self._inputs and not (keys & self._present) - own

        stem, suffix = source.stem, source.suffix.lstrip(".")
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        candidates = itertools.chain([earlier["name"]] if earlier else [], [stem, f"{stem}_{suffix}"], numbered)
        return next(name for name in candidates if is_free(name))

    def add(self, name: str, source: Path, depth: np.ndarray, log_depth: np.ndarray, colormap: str) -> None:
        """Writes the files of one result, all or none, then `metadata.json`.

        Args:
            name: From `choose_name`.
            source: The image file.
            depth: H×W in [0, 1].
            log_depth: H×W.
            colormap: Name of a matplotlib colour map.
        """
        files = [name + ending for ending in SUFFIXES]
        entry = {
            "name": name,
            "run": len(self._runs) - 1,
            "input": str(source),
            "input_sha256": _sha256(source),
            "height": depth.shape[0],
            "width": depth.shape[1],
            "files": files,
        }
        with ExitStack() as stack:
            depth_npy, log_depth_npy, depth_png, color_png = (
                stack.enter_context(atomic_write(self.path / file)) for file in files
            )
            save_array(depth_npy, depth.astype(np.float32))
            save_array(log_depth_npy, log_depth.astype(np.float32))
            save_image(depth_png, depth_to_uint16(depth))
            save_image(color_png, colorize_depth(depth, colormap))
        self._present |= {_key(file) for file in files}
        self._images = [other for other in self._images if other["name"] != name] + [entry]
        self._write()

    def close(self) -> None:
        """Removes the folder again if it is new and nothing came to be in it."""
        if self._is_new and not any(self.path.iterdir()):
            self.path.rmdir()

    def _read(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        path = self.path / METADATA_NAME
        if not path.exists():
            return [], []
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] == METADATA_FORMAT:
                return content["runs"], content["images"]
        except (ValueError, TypeError, KeyError, OSError):
            pass
        raise ValueError(f"{path} was not written by `depthfm predict`, or is damaged: choose another output folder.")

    def _write(self) -> None:
        # Runs whose results have all been replaced are dropped, and the others renumbered.
        used = sorted({entry["run"] for entry in self._images})
        self._runs = [self._runs[run] for run in used]
        self._images = [{**entry, "run": used.index(entry["run"])} for entry in self._images]
        content = {"format": METADATA_FORMAT, "values": VALUES, "runs": self._runs, "images": self._images}
        save_json(self.path / METADATA_NAME, content)


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
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": model, "sha256": fingerprint, "rescale_self_attention": config.rescale_self_attention},
        "settings": resolved,
        "scheduler": {
            "class": type(pipe.scheduler).__name__,
            **{key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")},
        },
        "device": str(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "versions": {
            "depthfm_diffusers": __version__,
            "python": platform.python_version(),
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
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
            name = folder.choose_name(source)
            folder.add(name, source, prediction[0, ..., 0], log_depth[0, ..., 0], settings.colormap)
        except (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
            yield InputFailure(str(source), _reason(error))
        else:
            yield None


def _reason(error: Exception) -> str:
    """What an exception says, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _key(name: str) -> str:
    """What two file names share if some file system takes them for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
