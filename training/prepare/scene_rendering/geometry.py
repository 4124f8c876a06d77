"""Upright boxes, pinhole cameras, and what a camera sees of boxes. Metres; x and y on the ground, z up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Box:
    """A box that stands upright, turned by `yaw` radians around z.

    Attributes:
        centre: x, y, z of its centre.
        size: Width, depth, height: extents along its own x, its own y, and z.
        yaw: Counterclockwise turn seen from above.
    """

    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float = 0.0

    @cached_property
    def rotation(self) -> np.ndarray:
        """3×3 matrix whose columns are the box's own axes in the world."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])

    @cached_property
    def footprint(self) -> np.ndarray:
        """4×2 corners on the ground."""
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        return (signs * (np.array(self.size[:2]) / 2)) @ self.rotation[:2, :2].T + np.array(self.centre[:2])

    @property
    def bottom(self) -> float:
        """Height of the underside."""
        return self.centre[2] - self.size[2] / 2

    @property
    def top(self) -> float:
        """Height of the upper side."""
        return self.centre[2] + self.size[2] / 2

    def distance(self, point: np.ndarray) -> float:
        """Distance of a point; 0 inside."""
        local = np.abs(self.rotation.T @ (point - np.array(self.centre))) - np.array(self.size) / 2
        return float(np.linalg.norm(np.maximum(local, 0)))


def standing_box(size: tuple[float, float, float], x: float, y: float, bottom: float = 0.0, yaw: float = 0.0) -> Box:
    """A box given by the middle and height of its underside."""
    return Box((x, y, bottom + size[2] / 2), size, yaw)


def overlap(a: Box, b: Box, gap: float = 0.0) -> bool:
    """Whether two boxes intersect, or come nearer to each other sideways than `gap` (separating axes)."""
    if a.bottom >= b.top or b.bottom >= a.top:
        return False
    for axes in (a.rotation[:2, :2], b.rotation[:2, :2]):
        low, high = (a.footprint @ axes).min(0), (a.footprint @ axes).max(0)
        other_low, other_high = (b.footprint @ axes).min(0), (b.footprint @ axes).max(0)
        if (np.maximum(low - other_high, other_low - high) >= gap).any():
            return False
    return True


@dataclass(frozen=True)
class Camera:
    """A pinhole with square pixels and its principal point in the middle of the image.

    Attributes:
        position: x, y, z.
        yaw: Direction it looks in, radians from the x axis, counterclockwise.
        pitch: Radians upwards.
        roll: Radians that the camera is turned clockwise around its optical axis.
        fov_x: Horizontal field of view, radians.
    """

    position: tuple[float, float, float]
    yaw: float
    pitch: float
    roll: float
    fov_x: float

    @property
    def axes(self) -> np.ndarray:
        """3×3: rows are the image's right, the image's down, and forward, in the world."""
        forward = np.array(
            [np.cos(self.pitch) * np.cos(self.yaw), np.cos(self.pitch) * np.sin(self.yaw), np.sin(self.pitch)]
        )
        level = np.array([np.sin(self.yaw), -np.cos(self.yaw), 0.0])
        down = np.cross(forward, level)
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        return np.stack([cos * level + sin * down, cos * down - sin * level, forward])

    def rays(self, width: int, height: int) -> np.ndarray:
        """Directions through pixel centres in the world, H×W×3; a step of 1 along one is a depth of 1."""
        focal = width / 2 / np.tan(self.fov_x / 2)
        columns, rows = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
        return np.stack([columns / focal, rows / focal, np.ones_like(columns)], axis=-1) @ self.axes


def cast(camera: Camera, boxes: list[Box], width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Planar depth of boxes, and which box is seen.

    Args:
        camera: The camera.
        boxes: At least one box.
        width: Image width in pixels.
        height: Image height in pixels.

    Returns:
        H×W depth along the optical axis, infinite where no box is hit and 0 where the camera is inside one; and H×W
        numbers of the boxes, -1 where no box is hit.
    """
    rays = camera.rays(width, height).reshape(-1, 3)
    origin = np.array(camera.position)
    nearest = np.full(len(rays), np.inf)
    seen = np.full(len(rays), -1)
    for number, box in enumerate(boxes):
        start = box.rotation.T @ (origin - np.array(box.centre))
        local = rays @ box.rotation
        local = np.where(np.abs(local) < 1e-12, 1e-12, local)
        half = np.array(box.size) / 2
        first, second = (-half - start) / local, (half - start) / local
        enter = np.minimum(first, second).max(1).clip(min=0)
        leave = np.maximum(first, second).min(1)
        hit = (enter <= leave) & (enter < nearest)
        nearest[hit] = enter[hit]
        seen[hit] = number
    return nearest.reshape(height, width), seen.reshape(height, width)
