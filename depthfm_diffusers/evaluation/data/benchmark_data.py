"""What the data of every benchmark have: samples with their mask, keys, and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...frames.reader import first_few
from ..metrics.masks import gentle_pixels
from .configs import FRACTION_CROPS, NYU_EIGEN_CROP, NYU_SIZE, BenchmarkConfig

KITTI_BENCHMARK_SIZE = (1216, 352)


@dataclass(frozen=True)
class Sample:
    """An image with its true depth.

    Attributes:
        key: Name of the image in its benchmark; the same on every machine and for every form of the data.
        image: H×W×3, uint8, RGB.
        depth: H×W, float32, planar depth along the optical axis in metres; 0 where it is not known.
        valid: H×W, bool; the pixels that are scored: depth is known, in the benchmark's range and inside its crop.
            There may be none.
        intrinsics: 3×3, float32, pixels, pixel centres at integers; `None` where the camera is not known.
    """

    key: str
    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    valid: NDArray[np.bool_]
    intrinsics: NDArray[np.float32] | None


class BenchmarkData(Sequence[Sample]):
    """The images of a benchmark, found and checked. Subclasses implement `files_of`, `read` and `header_problem`.

    Objects are read-only, hold no open file and can be pickled.

    Args:
        config: The benchmark.
        keys: Name of each image.

    Attributes:
        config: As given.
        keys: As given.

    Raises:
        ValueError: If there are none, more or fewer than the benchmark has, or two of the same name.
    """

    def __init__(self, config: BenchmarkConfig, keys: Sequence[str]) -> None:
        self.config = config
        self.keys = list(keys)
        if not self.keys:
            raise ValueError(f"Benchmark {config.name}: no image was found.")
        if config.images is not None and len(self.keys) != config.images:
            raise ValueError(
                f"Benchmark {config.name} has {config.images} images, {len(self.keys)} were found: "
                f"the first is {self.keys[0]!r}, the last {self.keys[-1]!r}."
            )
        if len(set(self.keys)) != len(self.keys):
            twice = sorted(key for key in set(self.keys) if self.keys.count(key) > 1)
            raise ValueError(f"Benchmark {config.name}: several images are called {first_few(twice)}.")

    def files_of(self, index: int) -> Iterable[tuple[str, int]]:
        """Returns name and size in bytes of what an image is read from, for the fingerprint."""
        raise NotImplementedError

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32] | None]:
        """Reads image, depth (0 where not known) and intrinsics, before any crop."""
        raise NotImplementedError

    def header_problem(self, index: int) -> str | None:
        """Returns what is wrong with an image as far as the headers of its files tell; `None` if nothing is."""
        raise NotImplementedError

    def check_headers(self, root: Path) -> None:
        """Checks the headers of all files, before any network is run.

        Args:
            root: Where the files are, for the message.

        Raises:
            ValueError: If images cannot be used, with their number and the first of them.
        """
        problems = [problem for problem in map(self.header_problem, range(len(self))) if problem]
        if problems:
            raise ValueError(
                f"Benchmark {self.config.name}: {len(problems)} of {len(self)} images in {root} cannot be used: "
                f"{first_few(problems)}."
            )

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices: they would read many images
        """Reads one image.

        Raises:
            IndexError: If the index is out of range.
            ValueError: If a file cannot be used, naming it.
        """
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Image {index} of {len(self)} in benchmark {self.config.name}.")
        index %= len(self)
        image, depth, intrinsics = self.read(index)
        if self.config.image_crop == "kitti-benchmark":
            image, depth, intrinsics = _kitti_benchmark_crop(image, depth, intrinsics)
        valid = self._pixels_in(depth, self.config.min_depth, self.config.crop)
        return Sample(self.keys[index], image, depth, valid, intrinsics)

    def fingerprint(self) -> str:
        """Computes a hash of the names of the images, and of the names and sizes of their files; reads no content.

        It is the same on every machine. The same benchmark in another form, with other files, may have another.
        """
        digest = hashlib.sha256()
        for index, key in enumerate(self.keys):
            digest.update(json.dumps([key, *self.files_of(index)]).encode())
        return digest.hexdigest()

    def stored_depth(self, index: int) -> NDArray[np.floating]:
        """Reads the depth map of an image as its file has it, also where it is not known: H×W, metres.

        Only data whose configuration has `ppd_max_gradient` need it.
        """
        raise NotImplementedError

    def ppd_pixels(self, index: int, depth: NDArray[np.float32], without_steep: bool = True) -> NDArray[np.bool_]:
        """Returns the pixels of an image that the protocol `ppd` scores: H×W.

        Args:
            index: The image.
            depth: `Sample.depth` of that image.
            without_steep: Whether pixels of a larger gradient than the configuration's `ppd_max_gradient` are left
                out.

        Raises:
            ImportError: If scipy is needed and not installed.
        """
        valid = self._pixels_in(depth, self.config.min_depth_of_ppd, self.config.crop_of_ppd)
        if without_steep and self.config.ppd_max_gradient is not None:
            valid &= gentle_pixels(self.stored_depth(index), self.config.ppd_max_gradient)
        return valid

    def size_problem(self, width: int, height: int) -> str | None:
        """Returns why an image of this size cannot be cropped and masked as the benchmark does; `None` if it can."""
        if self.config.image_crop == "kitti-benchmark":
            if width < KITTI_BENCHMARK_SIZE[0] or height < KITTI_BENCHMARK_SIZE[1]:
                return f"is {width}x{height} pixels, too small for the KITTI benchmark's 1216x352"
            width, height = KITTI_BENCHMARK_SIZE
        for crop in (self.config.crop, self.config.crop_of_ppd):
            if crop == "nyu-eigen" and (width, height) != NYU_SIZE:
                return f"is {width}x{height} pixels; the crop 'nyu-eigen' is for 640x480"
            if isinstance(crop, tuple) and (crop[1] > height or crop[3] > width):
                return f"is {width}x{height} pixels, too small for the crop {list(crop)} (top, bottom, left, right)"
        return None

    def config_intrinsics(self) -> NDArray[np.float32] | None:
        """Returns the camera that the benchmark's configuration gives; `None` if it gives none."""
        if self.config.intrinsics is None:
            return None
        fx, fy, cx, cy = self.config.intrinsics
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float32)

    def _pixels_in(
        self, depth: NDArray[np.float32], min_depth: float, crop: str | tuple[int, ...]
    ) -> NDArray[np.bool_]:
        valid = depth > max(min_depth, 0.0)
        if self.config.max_depth is not None:
            valid &= depth < self.config.max_depth
        top, bottom, left, right = _crop_box(crop, *depth.shape)
        inside = np.zeros_like(valid)
        inside[top:bottom, left:right] = True
        return valid & inside


def _crop_box(crop: str | tuple[int, ...], height: int, width: int) -> tuple[int, ...]:
    if isinstance(crop, tuple):
        return crop
    if crop == "nyu-eigen":
        return NYU_EIGEN_CROP
    if crop in FRACTION_CROPS:
        top, bottom, left, right = FRACTION_CROPS[crop]
        return int(top * height), int(bottom * height), int(left * width), int(right * width)
    return 0, height, 0, width


def _kitti_benchmark_crop(
    image: NDArray[np.uint8], depth: NDArray[np.float32], intrinsics: NDArray[np.float32] | None
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32] | None]:
    crop_width, crop_height = KITTI_BENCHMARK_SIZE
    top, left = depth.shape[0] - crop_height, (depth.shape[1] - crop_width) // 2
    box = (slice(top, top + crop_height), slice(left, left + crop_width))
    if intrinsics is not None:
        intrinsics = intrinsics - np.array([[0, 0, left], [0, 0, top], [0, 0, 0]], np.float32)
    return image[box], depth[box], intrinsics
