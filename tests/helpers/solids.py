"""Planes and spheres as a camera sees them: their depth, their normals, and which of them each pixel shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from depthfm_diffusers.geometry import intrinsics_from_fov


@dataclass(frozen=True)
class View:
    """What a camera sees: H×W depth (float64), H×W×3 normals, H×W number of the solid, 3×3 intrinsics."""

    depth: np.ndarray
    normals: np.ndarray
    solid: np.ndarray
    intrinsics: np.ndarray
    rays: np.ndarray

    def facing(self) -> np.ndarray:
        """The cosine between the normal and the direction to the camera, H×W."""
        return -(self.normals * self.rays).sum(-1) / np.linalg.norm(self.rays, axis=-1)


class Camera:
    """A pinhole camera that looks at solids."""

    def __init__(self, height: int = 48, width: int = 64, fov: float = 60.0) -> None:
        self.intrinsics = intrinsics_from_fov(fov, height, width).double().numpy()
        v, u = np.mgrid[:height, :width].astype(float)
        k = self.intrinsics
        self.rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], axis=-1)

    def plane(self, normal: tuple[float, float, float], distance: float) -> tuple[np.ndarray, np.ndarray]:
        """Depth and normals of the plane n·P = -distance; infinite where it is not in front of the camera."""
        unit = np.array(normal) / np.linalg.norm(normal)
        slant = -(self.rays @ unit)
        depth = np.where(slant > 1e-6, distance / np.maximum(slant, 1e-6), np.inf)
        return depth, np.broadcast_to(unit, self.rays.shape)

    def sphere(self, centre: tuple[float, float, float], radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Depth and normals of a sphere; infinite beside it."""
        c = np.array(centre)
        a, b = (self.rays**2).sum(-1), self.rays @ c
        root = b**2 - a * (c @ c - radius**2)
        depth = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        points = self.rays * np.where(np.isfinite(depth), depth, 1)[..., None]
        return depth, (points - c) / radius

    def see(self, *solids: tuple[np.ndarray, np.ndarray]) -> View:
        """The nearest solid at each pixel; depth 0 and number -1 where there is none."""
        depths = np.stack([depth for depth, _ in solids])
        solid = depths.argmin(axis=0)
        depth = depths.min(axis=0)
        normals = np.take_along_axis(np.stack([n for _, n in solids]), solid[None, ..., None], axis=0)[0]
        sky = ~np.isfinite(depth)
        return View(
            np.where(sky, 0, depth),
            np.where(sky[..., None], 0, normals),
            np.where(sky, -1, solid),
            self.intrinsics,
            self.rays,
        )


def window(depth_and_normals: tuple[np.ndarray, np.ndarray], rows: slice, columns: slice) -> tuple:
    """A solid that is only there in some rows and columns."""
    depth, normals = depth_and_normals
    cut = np.full_like(depth, np.inf)
    cut[rows, columns] = depth[rows, columns]
    return cut, normals
