"""Makes WebDataset shards of Hypersim: tone-mapped images, planar depth, the official split, the usual filters.

    python training/prepare/hypersim.py --data_dir HYPERSIM --split_csv metadata_images_split_scene_v1.csv \
        --camera_parameters metadata_camera_parameters.csv --split train --output shards/hypersim-train

The layout read is that of the published zip files, see docs/prepare_data.md. The same command after a kill continues.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from hypersim_camera import HypersimCameras, ray_lengths
from PIL import Image
from prepare_command import HelpFormatter, add_output_options, exit_code, positive_fraction, write_prepared
from shard_writer import FrameRejected, Sample, UnusableFrame, file_sha256

SOURCE = {
    "name": "Hypersim",
    "homepage": "https://github.com/apple/ml-hypersim",
    "licence": "CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/)",
    "citation": "Roberts et al., Hypersim: A Photorealistic Synthetic Dataset for Holistic Indoor Scene "
    "Understanding, ICCV 2021",
}
SPLITS = ("train", "val", "test")
SPLIT_COLUMNS = ("scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name")

EMPTY = -1  # render_entity_id where there is no geometry
DEPTH_SCALE = 0.001
MAX_DEPTH_COUNT = 65534

# Tone mapping of ml-hypersim (scene_generate_images_tonemap.py).
GAMMA = 1 / 2.2
PERCENTILE = 90
PERCENTILE_BRIGHTNESS = 0.8  # after tone mapping
MIN_PERCENTILE_BRIGHTNESS = 1e-4  # before; a darker image is scaled to black
LUMA = (0.3, 0.59, 0.11)  # CCIR 601


@dataclass(frozen=True)
class HypersimFrame:
    """One row of the split: where a frame's files are."""

    scene: str
    camera: str
    number: int

    @property
    def key(self) -> str:
        """Name in the shard."""
        return f"{self.scene}_{self.camera}_frame_{self.number:04d}"

    def path(self, part: str, content: str) -> Path:
        """Path below the data set's folder, `part` being `final` or `geometry`."""
        folder = Path(self.scene) / "images" / f"scene_{self.camera}_{part}_hdf5"
        return folder / f"frame.{self.number:04d}.{content}.hdf5"


@dataclass(frozen=True)
class Filters:
    """What a frame must have; see `check_filters`."""

    min_depth_range: float
    min_rgb_range: int
    max_invalid: float


def read_split(path: Path, split: str, scenes: Sequence[str]) -> list[HypersimFrame]:
    """Reads the published frames of a split.

    Args:
        path: `metadata_images_split_scene_v1.csv`.
        split: `train`, `val` or `test`.
        scenes: Patterns of scene names, such as `ai_001_*`.

    Raises:
        ValueError: If the file is not such a split, or a pattern fits none of its frames.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in SPLIT_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"--split_csv: {path} has no column {missing}.")
        rows = [
            row
            for row in reader
            if row["included_in_public_release"] == "True" and row["split_partition_name"] == split
        ]
    for pattern in scenes:
        if not any(fnmatch.fnmatchcase(row["scene_name"], pattern) for row in rows):
            raise ValueError(f"--scenes: no scene of split {split!r} fits {pattern!r}.")
    return [
        HypersimFrame(row["scene_name"], row["camera_name"], int(row["frame_id"]))
        for row in rows
        if any(fnmatch.fnmatchcase(row["scene_name"], pattern) for pattern in scenes)
    ]


def import_h5py() -> ModuleType:
    """Imports h5py.

    Raises:
        ImportError: Naming the extra to install.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Hypersim is stored as HDF5: pip install 'depthfm_diffusers[prepare]'.") from error
    return h5py


def read_hdf5(root: Path, path: Path, kind: type[np.generic], channels: int | None) -> np.ndarray:
    """Reads the array that each of Hypersim's files holds under the name `dataset`.

    Args:
        root: The data set's folder.
        path: File below it.
        kind: What its numbers must be, `np.floating` or `np.integer`.
        channels: H×W×channels is expected, or H×W where it is `None`.

    Raises:
        UnusableFrame: If the file is missing, broken or holds something else.
    """
    if not (root / path).is_file():
        raise UnusableFrame("missing_file", root, path, "no such file")
    h5py = import_h5py()
    try:
        with h5py.File(root / path, "r") as file:
            if not isinstance(file.get("dataset"), h5py.Dataset):
                raise UnusableFrame("wrong_format", root, path, "it holds no array called 'dataset'")
            array = file["dataset"][()]
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:  # what h5py makes of broken headers
        raise UnusableFrame("unreadable_file", root, path, "not a readable HDF5 file") from error
    dimensions = 2 if channels is None else 3
    if array.ndim != dimensions or array.size == 0 or (channels is not None and array.shape[-1] != channels):
        wanted = "HxW" if channels is None else f"HxWx{channels}"
        raise UnusableFrame("wrong_format", root, path, f"the array has shape {array.shape}, not {wanted}")
    if not np.issubdtype(array.dtype, kind):
        raise UnusableFrame("wrong_format", root, path, f"the array has type {array.dtype}, not {kind.__name__}")
    return array


def tone_map(color: np.ndarray, geometry: np.ndarray) -> np.ndarray:
    """Maps radiance to 8 bit as ml-hypersim does for its preview images.

    The image is scaled so that the 90th percentile of the brightness, over pixels with geometry, becomes 0.8 after
    gamma 1/2.2. An image without geometry is not scaled. Values are rounded to the nearest of the 256 levels.

    Args:
        color: H×W×3, linear radiance; infinity is white.
        geometry: H×W, bool.

    Returns:
        H×W×3, uint8.

    Raises:
        FrameRejected: If a value is not a number, or the percentile is not finite.
    """
    color = color.astype(np.float32)
    if np.isnan(color).any():
        raise FrameRejected("color_not_finite", f"{int(np.isnan(color).any(-1).sum())} pixels are not a number")
    scale = 1.0
    if geometry.any():
        red, green, blue = np.moveaxis(color[geometry], -1, 0)
        with np.errstate(invalid="ignore"):  # infinity less infinity: the percentile is then not a number
            brightness = float(np.percentile(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue, PERCENTILE))
        if not np.isfinite(brightness):
            raise FrameRejected("color_not_finite", f"percentile {PERCENTILE} of the brightness is {brightness}")
        bright_enough = brightness >= MIN_PERCENTILE_BRIGHTNESS
        scale = PERCENTILE_BRIGHTNESS ** (1 / GAMMA) / brightness if bright_enough else 0.0
    # Infinity becomes the largest number that the files can hold: times a scale of zero it would not be a number.
    finite = np.clip(color, 0.0, np.finfo(np.float16).max)
    return np.rint(np.clip((scale * finite) ** GAMMA, 0.0, 1.0) * 255).astype(np.uint8)


def planar_depth_counts(
    distance: np.ndarray, geometry: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turns distances to the camera's centre into planar depth.

    Args:
        distance: H×W, metres.
        geometry: H×W, bool; elsewhere nothing is known.
        intrinsics: 3×3.

    Returns:
        H×W, uint16, millimetres, 0 = not known; and H×W, bool: what was too far (over 65.534 m) to be written.
    """
    millimetres = np.rint(distance.astype(np.float64) / ray_lengths(intrinsics, *distance.shape) / DEPTH_SCALE)
    known = geometry & np.isfinite(millimetres) & (millimetres > 0)
    too_far = known & (millimetres > MAX_DEPTH_COUNT)
    return np.where(known & ~too_far, millimetres, 0).astype(np.uint16), too_far


def check_filters(image: np.ndarray, depth: np.ndarray, filters: Filters) -> None:
    """Lets a frame pass that is worth training on.

    Args:
        image: H×W×3, uint8: the largest value less the smallest, over all pixels and channels, must be at least
            `min_rgb_range`.
        depth: H×W, uint16, millimetres: the share of zeros, that is of pixels without geometry, without a finite
            positive distance, or over 65.534 m, must be at most `max_invalid`; the largest known depth less the
            smallest must be at least `min_depth_range` metres.
        filters: The thresholds.

    Raises:
        FrameRejected: With the first reason of `invalid`, `depth_range`, `rgb_range`.
    """
    known = depth[depth > 0]
    invalid = 1 - known.size / depth.size
    if known.size == 0 or depth.size - known.size > filters.max_invalid * depth.size:
        raise FrameRejected("invalid", f"{invalid:.2%} of the pixels have no known depth")
    depth_range = int(known.max()) - int(known.min())
    if depth_range < round(filters.min_depth_range / DEPTH_SCALE):
        raise FrameRejected("depth_range", f"{depth_range * DEPTH_SCALE:.3f} m")
    rgb_range = int(image.max()) - int(image.min())
    if rgb_range < filters.min_rgb_range:
        raise FrameRejected("rgb_range", str(rgb_range))


def encode_frame(frame: HypersimFrame, root: Path, cameras: HypersimCameras, filters: Filters) -> Sample:
    """Makes the files of a frame.

    Raises:
        FrameRejected: If the frame does not pass the filters.
        UnusableFrame: If one of its files cannot be used.
        ValueError: If its camera is not known.
    """
    color_path = frame.path("final", "color")
    color = read_hdf5(root, color_path, np.floating, 3)
    distance_path = frame.path("geometry", "depth_meters")
    distance = read_hdf5(root, distance_path, np.floating, None)
    entity_path = frame.path("geometry", "render_entity_id")
    entity = read_hdf5(root, entity_path, np.integer, None)
    height, width = color.shape[:2]
    for path, array in ((distance_path, distance), (entity_path, entity)):
        if array.shape != (height, width):
            sizes = f"{array.shape[1]}x{array.shape[0]} pixels, {color_path.name} has {width}x{height}"
            raise UnusableFrame("wrong_format", root, path, sizes)
    geometry = entity != EMPTY
    intrinsics = cameras.intrinsics(frame.scene, height, width)
    depth, too_far = planar_depth_counts(distance, geometry, intrinsics)
    image = tone_map(color, geometry)
    check_filters(image, depth, filters)
    # A skew (scenes tilted both ways) is in the depth but has no place in the json.
    camera = [intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]]
    metadata = {
        "scene": frame.scene,
        "intrinsics": [round(float(number), 6) for number in camera],
        "depth_scale": DEPTH_SCALE,
    }
    return Sample(
        scene=frame.scene,
        files={"png": _png(image), "depth.png": _png(depth), "json": json.dumps(metadata).encode()},
        counts={
            "pixels": depth.size,
            "pixels_without_depth": int((depth == 0).sum()),
            "pixels_over_65.534_m": int(too_far.sum()),
        },
    )


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Writes the shards of one split; returns the manifest."""
    import_h5py()
    frames = read_split(options.split_csv, options.split, options.scenes)
    cameras = HypersimCameras(options.camera_parameters)
    cameras.check_scenes({frame.scene for frame in frames})
    filters = Filters(options.min_depth_range, options.min_rgb_range, options.max_invalid)
    return write_prepared(
        options,
        f"hypersim-{options.split}",
        frames,
        lambda frame: encode_frame(frame, options.data_dir, cameras, filters),
        settings={
            "split": options.split,
            "scenes": options.scenes,
            "split_csv_sha256": file_sha256(options.split_csv),
            "camera_parameters_sha256": file_sha256(options.camera_parameters) if options.camera_parameters else None,
            "min_depth_range": options.min_depth_range,
            "min_rgb_range": options.min_rgb_range,
            "max_invalid": options.max_invalid,
        },
        source=SOURCE,
        packages=("h5py", "numpy", "pillow"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, metavar="DIR", help="folder with ai_001_001 and so on")
    parser.add_argument("--split_csv", type=Path, required=True, metavar="CSV", help="the official split")
    parser.add_argument("--split", choices=SPLITS, default="train", help="part of the split to write")
    parser.add_argument("--scenes", nargs="+", default=["*"], metavar="PATTERN", help="only these, such as 'ai_001_*'")
    camera = parser.add_mutually_exclusive_group(required=True)
    camera.add_argument(
        "--camera_parameters", type=Path, metavar="CSV", help="metadata_camera_parameters.csv: each scene's own camera"
    )
    camera.add_argument(
        "--fixed_camera", action="store_true", help="60 degrees for all scenes; wrong for those with a tilted lens"
    )
    parser.add_argument("--min_depth_range", type=float, default=0.5, metavar="METRES", help="less is rejected")
    parser.add_argument("--min_rgb_range", type=int, default=10, metavar="LEVELS", help="less, of 255, is rejected")
    parser.add_argument(
        "--max_invalid",
        type=positive_fraction,
        default=0.03,
        metavar="SHARE",
        help="more pixels without known depth: rejected",
    )
    add_output_options(parser)
    return exit_code(prepare, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
