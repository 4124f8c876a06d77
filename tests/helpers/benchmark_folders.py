"""Writes tiny data sets in the layouts and file formats of the benchmarks."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from helpers.shards import encode, png
from PIL import Image

from depthfm_diffusers.evaluation.data.configs import BenchmarkConfig, load_benchmark

Files = dict[str, bytes]


def shortened(folder: Path, name: str, rows: list[str]) -> BenchmarkConfig:
    """A bundled benchmark that has only the images of a few lines of its list; `rows` is in the list's own form."""
    config = load_benchmark(name)
    columns = next(line for line in (config.folder / config.file_list).read_text().splitlines() if line[0] != "#")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / config.file_list).write_text("\n".join([columns, *rows]) + "\n")
    number = sum(len(row.split()) - len(columns.split()) + 1 for row in rows)
    return dataclasses.replace(config, folder=folder, images=number)


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    """Writes files below a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: Mapping[str, bytes], prefix: str = "./") -> Path:
    """Writes files as a tar, their names with `./` as Marigold's archives have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def colours(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image that is not constant, H×W×3, uint8."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows + seed, columns, rows + columns], -1).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    """The content of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def counts(height: int, width: int, value: int, points: Mapping[tuple[int, int], int]) -> np.ndarray:
    """16-bit counts, of one value but for some pixels."""
    array = np.full((height, width), value, np.uint16)
    for place, count in points.items():
        array[place] = count
    return array


def nyuv2_files(scene: str, frame: int, depth: np.ndarray) -> Files:
    """One frame as Marigold's archive of NYUv2 has it."""
    folder = f"test/{scene}"
    return {
        f"{folder}/rgb_{frame:04d}.png": png(colours(*depth.shape, seed=frame)),
        f"{folder}/depth_{frame:04d}.png": png(depth),
        f"{folder}/filled_{frame:04d}.png": png(np.full_like(depth, 9999)),
    }


def write_labeled_mat(path: Path, frames: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> Path:
    """Writes `nyu_depth_v2_labeled.mat` with images and depth (metres) of some of its 1449 frames, counted from 1.

    As Matlab stores it: its H×W×3×N is N×3×W×H in HDF5. Frames that are not given take no space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:  # Matlab's own header is in front
        images = file.create_dataset("images", (1449, 3, 640, 480), np.uint8, chunks=(1, 3, 640, 480))
        raw = file.create_dataset("rawDepths", (1449, 640, 480), np.float32, chunks=(1, 640, 480))
        filled = file.create_dataset("depths", (1449, 640, 480), np.float32, chunks=(1, 640, 480))
        for number, (image, depth) in frames.items():
            images[number - 1] = image.transpose(2, 1, 0)
            raw[number - 1] = depth.T
            filled[number - 1] = np.full_like(depth.T, 9.9)
    return path


def kitti_files(date: str, drive: str, frame: int, depth: np.ndarray, layout: str = "train") -> Files:
    """One image of KITTI: raw data beside the annotated depth's `train` or `val`, or "marigold" for its archive."""
    name = f"{date}_drive_{drive}_sync"
    depth_folder = name if layout == "marigold" else f"{layout}/{name}"
    return {
        f"{date}/{name}/image_02/data/{frame:010d}.png": png(colours(*depth.shape, seed=frame)),
        f"{depth_folder}/proj_depth/groundtruth/image_02/{frame:010d}.png": png(depth),
    }


def diode_files(part: str, scene: int, scan: int, view: str, depth: np.ndarray, mask: np.ndarray) -> Files:
    """One view of DIODE's validation set: depth H×W×1 float32, mask H×W float64, as published."""
    stem = f"{part}/scene_{scene:05d}/scan_{scan:05d}/{scene:05d}_{scan:05d}_{part}_{view}"
    return {
        f"{stem}.png": png(colours(*depth.shape[:2])),
        f"{stem}_depth.npy": encode(depth.astype(np.float32).reshape(*depth.shape[:2], 1), "NPY"),
        f"{stem}_depth_mask.npy": encode(mask.astype(np.float64), "NPY"),
    }


def eth3d_files(scene: str, number: int, depth: np.ndarray, layout: str = "published") -> Files:
    """One image of ETH3D's training scenes with its bare float32 depth; layout "published" or "marigold"."""
    image, truth = f"{scene}/images/dslr_images", f"{scene}/ground_truth_depth/dslr_images"
    if layout == "marigold":
        image, truth = f"rgb/{image}", f"depth/{scene}_dslr_depth/{truth}"
    name = f"DSC_{number:04d}.JPG"
    return {
        f"{image}/{name}": jpeg(colours(*depth.shape)),
        f"{truth}/{name}": depth.astype("<f4").tobytes(),
    }


def scannet_files(
    scene: str, frame: int, depth: np.ndarray, layout: str = "marigold", size: tuple[int, int] | None = None
) -> Files:
    """One frame of ScanNet; layout "marigold", or "exported" as its SensReader names files; image of `size` H, W."""
    folder, name = (scene, f"{frame:06d}") if layout == "marigold" else (f"scans/{scene}", str(frame))
    return {
        f"{folder}/color/{name}.jpg": jpeg(colours(*(size or depth.shape))),
        f"{folder}/depth/{name}.png": png(depth),
    }
