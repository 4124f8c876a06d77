"""NYU Depth v2 as its authors publish it: one Matlab 7.3 file, which is HDF5."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...utils.imports import import_optional
from .benchmark_data import BenchmarkData
from .configs import BenchmarkConfig
from .file_lists import fill, placeholders, read_file_list

LABELED_MAT = "nyu_depth_v2_labeled.mat"
FRAMES = 1449


class LabeledMatData(BenchmarkData):
    """The images of a list. Its column `frame` counts from 1, as Matlab and the official split do.

    Depth is that of the sensor (`rawDepths`, metres), as in Marigold's archive and in BTS: pixels without a
    measurement are not scored. In `depths`, which is not used, these holes are filled.

    Args:
        config: The benchmark.
        mat: The file.

    Raises:
        ImportError: If h5py is not installed.
        ValueError: If the list has frames that the file cannot have, or the file is not what its authors published.
    """

    def __init__(self, config: BenchmarkConfig, mat: Path) -> None:
        path = config.folder / str(config.file_list)
        rows = read_file_list(path, {"frame", *placeholders(str(config.key))})
        for row in rows:
            if not (row["frame"].isdecimal() and 1 <= int(row["frame"]) <= FRAMES):
                raise ValueError(f"The file list {path}: `frame` must be 1 to {FRAMES}, got {row['frame']!r}.")
        super().__init__(config, [fill(str(config.key), row) for row in rows])
        self.mat = mat
        self.frames = [int(row["frame"]) - 1 for row in rows]
        h5py = _import_h5py()
        try:
            with h5py.File(mat, "r") as file:
                self._check(file)
        except OSError as error:
            raise ValueError(f"{mat} is cut off or not a Matlab 7.3 file ({error}).") from error

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32] | None]:
        """Reads an image's arrays."""
        frame = self.frames[index]
        with _import_h5py().File(self.mat, "r") as file:
            # Matlab stores columns first: its H×W×3×N is N×3×W×H here.
            image = np.ascontiguousarray(file["images"][frame].transpose(2, 1, 0))
            depth = np.ascontiguousarray(file["rawDepths"][frame].T, dtype=np.float32)
        if not np.isfinite(depth).all() or (depth < 0).any():
            raise ValueError(f"{self.mat}: rawDepths of frame {frame + 1} has negative or not finite values.")
        return image, depth, self.config_intrinsics()

    def files_of(self, index: int) -> Iterable[tuple[str, int]]:
        """Returns the one file."""
        return [(LABELED_MAT, self.mat.stat().st_size)]

    def _check(self, file: Any) -> None:
        for name, shape, dtype in (
            ("images", (FRAMES, 3, 640, 480), "uint8"),
            ("rawDepths", (FRAMES, 640, 480), "float32"),
        ):
            array = file.get(name)
            if array is None or not hasattr(array, "shape"):
                raise ValueError(f"{self.mat} has no array {name!r}; it has {', '.join(file)}.")
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{self.mat}: {name!r} is {array.dtype} {array.shape}, not {dtype} {shape}.")


def _import_h5py() -> ModuleType:
    return import_optional("h5py", "evaluate", f"Reading {LABELED_MAT}")
