"""Opens the data of a benchmark: finds the files, and checks them before any network is run."""

from __future__ import annotations

import os
from pathlib import Path

from .benchmark_data import BenchmarkData, Sample
from .configs import BenchmarkConfig
from .frame_data import FrameData
from .listed_data import ListedData
from .nyuv2_data import LABELED_MAT, LabeledMatData

__all__ = ["BenchmarkData", "Sample", "open_benchmark"]


def open_benchmark(config: BenchmarkConfig, root: str | os.PathLike[str]) -> BenchmarkData:
    """Opens the data of a benchmark.

    Names, sizes and headers are checked here: every file must be there, the number of images must be right, depth must
    have the right number of bits, and image and depth must have the same size. The content of a file is decoded when
    its sample is read.

    Args:
        config: The benchmark, see `configs.load_benchmark`.
        root: Where its data are: a folder, or one file with all of them, a `.tar` (or NYUv2's `.mat`).

    Returns:
        The images, in an order that does not depend on the machine.

    Raises:
        FileNotFoundError: If the root or files in it are missing, naming the first of them and how many there are.
        ImportError: If NYUv2's `.mat` file is to be read and h5py is not installed.
        ValueError: If there are too few or too many images, or files cannot be used, naming them.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"Benchmark {config.name}: there is no file or folder {root}.")
    if config.reader in ("pairs", "shards"):
        return FrameData(config, root)
    if config.reader == "nyuv2":
        mat = root / LABELED_MAT if root.is_dir() else root
        if mat.is_file() and mat.suffix == ".mat":
            return LabeledMatData(config, mat)
    return ListedData(config, root)
