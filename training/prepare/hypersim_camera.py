"""The cameras of Hypersim: what turns its distances into planar depth.

`depth_meters.hdf5` holds distances to the camera's centre. A pinhole with intrinsics K sees pixel p = (x, y, 1) along
K⁻¹p, whose z is 1, so a distance d is the planar depth d / |K⁻¹p|.

Without more, K is that of a horizontal field of view of 60° (886.81 pixels at 1024×768) with a centred principal
point. In 265 of the 457 published scenes `metadata_camera_parameters.csv` has another camera: their image plane is
shifted or tilted as by a tilt-shift lens. The file gives M for each scene, which takes (u, v, 1), with u and v in
[-1, 1], v up, to a direction in camera coordinates (x right, y up, z backwards). A tilted image plane is a pinhole
too, looking along the normal of that plane: with G the matrix from pixels to directions, GᵀG = s²·K⁻ᵀK⁻¹ whatever the
rotation between the two, so K comes from a Cholesky factor of GᵀG. Planar depth is then along that pinhole's optical
axis, which is what unprojection with K takes it for.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

FOV_X = math.pi / 3  # settings_camera_fov of every scene
SCENE_COLUMN = "scene_name"
WIDTH_COLUMN = "settings_output_img_width"
HEIGHT_COLUMN = "settings_output_img_height"
MATRIX_COLUMNS = tuple(tuple(f"M_cam_from_uv_{row}{column}" for column in range(3)) for row in range(3))

# From y up and z backwards to y down and z forwards, as pixels go. Does not change K; makes the determinant positive.
FLIP = np.diag([1.0, -1.0, -1.0])


def default_intrinsics(height: int, width: int) -> np.ndarray:
    """K of a scene without tilt or shift: 3×3, float64, pixels, pixel centres at integers."""
    focal = 0.5 * width / math.tan(0.5 * FOV_X)
    return np.array([[focal, 0.0, 0.5 * (width - 1)], [0.0, focal, 0.5 * (height - 1)], [0.0, 0.0, 1.0]])


def intrinsics_from_uv_matrix(camera_from_uv: np.ndarray, height: int, width: int) -> np.ndarray:
    """K of the pinhole that a matrix of `metadata_camera_parameters.csv` describes.

    Args:
        camera_from_uv: 3×3, from (u, v, 1) to camera coordinates; its scale does not matter.
        height: Pixels.
        width: Pixels.

    Returns:
        3×3, float64, upper triangular, K[2, 2] = 1. K[0, 1] is not zero where the plane is tilted both ways.

    Raises:
        ValueError: If the matrix is not that of a camera.
    """
    uv_from_pixel = np.array([[2 / width, 0.0, 1 / width - 1], [0.0, -2 / height, 1 - 1 / height], [0.0, 0.0, 1.0]])
    rays_from_pixel = FLIP @ camera_from_uv @ uv_from_pixel
    if not (np.isfinite(rays_from_pixel).all() and np.linalg.det(rays_from_pixel) > 0):
        raise ValueError(f"not a camera that looks along -z: {camera_from_uv.tolist()}.")
    factor = np.linalg.cholesky(rays_from_pixel.T @ rays_from_pixel).T
    return np.linalg.inv(factor / factor[2, 2])


def ray_lengths(intrinsics: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns |K⁻¹p| of each pixel: distance along the ray per planar depth; H×W, float64, at least 1."""
    inverse = np.linalg.inv(intrinsics)
    x = np.arange(width)
    y = np.arange(height)[:, None]
    across = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
    down = inverse[1, 1] * y + inverse[1, 2]
    return np.sqrt(across**2 + down**2 + 1.0)


class HypersimCameras:
    """The camera of each scene.

    Args:
        path: `metadata_camera_parameters.csv`; `None` for 60° everywhere.

    Raises:
        ValueError: If the file lacks a column or has something else than a number.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.scenes: dict[str, tuple[np.ndarray, float, float]] = {}
        if path is None:
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            wanted = (SCENE_COLUMN, WIDTH_COLUMN, HEIGHT_COLUMN, *(name for row in MATRIX_COLUMNS for name in row))
            missing = [name for name in wanted if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"--camera_parameters: {path} has no column {missing}.")
            for row in reader:
                self.scenes[row[SCENE_COLUMN]] = self._parse(row)

    def _parse(self, row: Mapping[str, str]) -> tuple[np.ndarray, float, float]:
        try:
            matrix = np.array([[float(row[name]) for name in names] for names in MATRIX_COLUMNS])
            return matrix, float(row[WIDTH_COLUMN]), float(row[HEIGHT_COLUMN])
        except (TypeError, ValueError) as error:
            raise ValueError(f"--camera_parameters: {self.path}, scene {row[SCENE_COLUMN]}: {error}.") from error

    def check_scenes(self, scenes: Iterable[str]) -> None:
        """Looks for all scenes before any work is done.

        Raises:
            ValueError: If the file lacks one.
        """
        missing = sorted(set(scenes) - self.scenes.keys())
        if self.path is not None and missing:
            raise ValueError(f"--camera_parameters: {self.path} does not have {len(missing)} scenes: {missing[0]} …")

    def intrinsics(self, scene: str, height: int, width: int) -> np.ndarray:
        """K of a scene: 3×3, float64, pixels of an image of that size, pixel centres at integers.

        Raises:
            KeyError: If the file does not have the scene, see `check_scenes`.
            ValueError: If it has the scene with another aspect ratio, or what it has is not a camera.
        """
        if self.path is None:
            return default_intrinsics(height, width)
        matrix, rendered_width, rendered_height = self.scenes[scene]
        if width * rendered_height != height * rendered_width:
            raise ValueError(
                f"--camera_parameters: {self.path} has scene {scene} at {rendered_width:g}x{rendered_height:g} "
                f"pixels, an image has {width}x{height}."
            )
        try:
            return intrinsics_from_uv_matrix(matrix, height, width)
        except ValueError as error:
            raise ValueError(f"--camera_parameters: {self.path}, scene {scene}: {error}") from error
