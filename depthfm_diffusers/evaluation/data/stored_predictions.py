"""Depth maps that any program has made of a benchmark's images, read from files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ...frames.reader import first_few
from ...image_processing import load_image
from ...utils.files import file_sha256
from ..choices import LOG_PLUS_ONE, PREDICTION_FORMS
from ..metrics.alignment import prediction_in_space
from ..metrics.ransac import prediction_for_ransac

# Looked for in this order if only a folder is given.
ENDINGS = (".npy", ".png", ".tif", ".tiff")
PICTURE_MODES = ("I;16", "I;16L", "I;16B", "I", "F")


class StoredPredictions:
    """The depth maps of a benchmark's images, one file each.

    Args:
        where: A folder, in which the map of an image is `KEY.npy` or a 16-bit `KEY.png`, KEY being the image's name in
            the benchmark. Or a path with `{key}` in it, or with `{name}`, the last part of KEY, such as
            `predicted/{name}_log_depth.npy`.
        form: What the values are, up to a positive factor and an offset: one of `PREDICTION_FORMS`.
        keys: The names of the images.

    Attributes:
        files: The file of each image by the image's name.
        form: As given.

    Raises:
        FileNotFoundError: If an image has no map.
        ValueError: If `form` is unknown, or two images have one map.
    """

    def __init__(self, where: str, form: str, keys: Sequence[str]) -> None:
        if form not in PREDICTION_FORMS:
            raise ValueError(f"`form` must be one of {PREDICTION_FORMS}, got {form!r}.")
        self.form = form
        self.files: dict[str, Path] = {}
        for key in keys:
            found = [path for path in _candidates(where, key) if path.is_file()]
            if found:
                self.files[key] = found[0]
        missing = [key for key in keys if key not in self.files]
        if missing:
            looked_for = " and ".join(map(str, _candidates(where, missing[0])[:2]))
            raise FileNotFoundError(
                f"{len(missing)} of {len(keys)} images have no prediction: {first_few(missing)}. That of the first is "
                f"not at {looked_for}; a path with {{key}} or {{name}} for the image's name says where the maps are."
            )
        owners: dict[Path, str] = {}
        for key, path in self.files.items():
            if owners.setdefault(path, key) != key:
                raise ValueError(
                    f"{path} is the prediction of both {owners[path]!r} and {key!r}: use {{key}} in the path."
                )

    def fingerprint(self) -> str:
        """Computes a hash of the images' names, of the content of their maps, and of the form."""
        content = [self.form, *([key, file_sha256(path)] for key, path in self.files.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(self, key: str, shape: tuple[int, ...], space: str) -> NDArray[np.float64]:
        """Reads the map of an image in the form that is aligned in a space.

        Args:
            key: The image.
            shape: Height and width of its true depth.
            space: One of `ALIGNMENT_SPACES`, or `LOG_PLUS_ONE`, for which no values are refused.

        Returns:
            H×W.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it holds no map of this size, or values that have no meaning in this space.
        """
        path = self.files[key]
        values = _read_map(path)
        if values.shape != shape:
            sizes = [f"{height}x{width}" for height, width in (values.shape, shape)]
            raise ValueError(f"{path} is {sizes[0]}, the image is {sizes[1]} (height x width): resize it.")
        if space == LOG_PLUS_ONE:
            return prediction_for_ransac(values, self.form)
        if self.form == "log":
            return prediction_in_space(values, space).astype(np.float64)
        own_spaces = ("depth", "none") if self.form == "depth" else ("disparity",)
        if space in own_spaces:
            return values
        if not (values > 0).all():
            raise ValueError(
                f"{path} has values that are not positive: as {self.form} up to an offset it can be aligned in "
                f"{self.form} only (--alignment {self.form})."
            )
        return np.log(values) * (1 if self.form == "depth" else -1) if space == "log" else 1 / values


def _candidates(where: str, key: str) -> list[Path]:
    if "{key}" in where or "{name}" in where:
        return [Path(where.replace("{key}", key).replace("{name}", PurePosixPath(key).name))]
    return [Path(where, key + ending) for ending in ENDINGS]


def _read_map(path: Path) -> NDArray[np.float64]:
    """Reads an array H×W, or with axes of length 1 before or after, or a picture of more than 8 bits."""
    if path.suffix.lower() == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a readable .npy file ({error}).") from error
        values = array
        while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
            values = values[0] if values.shape[0] == 1 else values[..., 0]
        if values.dtype.kind not in "fiu" or values.ndim != 2:
            raise ValueError(f"{path} holds {array.dtype} of shape {array.shape}, not one map of numbers.")
        return values.astype(np.float64)
    picture = load_image(path)
    if picture.mode not in PICTURE_MODES:
        raise ValueError(f"{path} has mode {picture.mode!r}: a map is 16-bit grey, 32-bit floating point or .npy.")
    return np.asarray(picture).astype(np.float64)
