"""Meshes of things that are drawn instead of taken from the catalogue: turned, swept, and flat parts.

Metres; z up; the middle of a thing's underside is at the origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .surfaces import Surface

SEGMENTS = 28  # of a turned part's circles
RING = 10  # corners of a swept part's cross-section
JOINT = 0.0003  # metres between a thing and what it stands on, so that rounding makes no overlap of the two

Point = tuple[float, float, float]


class Mesh(NamedTuple):
    """Vertices N×3; faces as numbers of vertices; texture coordinates in metres of each face's corners, M×2."""

    vertices: np.ndarray
    faces: list[tuple[int, ...]]
    texture: np.ndarray


@dataclass(frozen=True)
class Turned:
    """A surface of revolution around z.

    Attributes:
        profile: Radius and height of each ring, from one end to the other.
        centre: x, y that it turns around.
        squeeze: Factor on its extent along y.
    """

    profile: tuple[tuple[float, float], ...]
    surface: Surface
    centre: tuple[float, float] = (0.0, 0.0)
    squeeze: float = 1.0

    def mesh(self) -> Mesh:
        """Its mesh."""
        angles = np.linspace(0, 2 * np.pi, SEGMENTS, endpoint=False)
        circle = np.stack([np.cos(angles), self.squeeze * np.sin(angles)], 1)
        rings = [np.c_[radius * circle + self.centre, np.full(SEGMENTS, height)] for radius, height in self.profile]
        return _bridge(np.stack(rings))


@dataclass(frozen=True)
class Swept:
    """An ellipse that is moved along a line: handles, stems, cutlery, cables, leaves.

    Attributes:
        line: Points of its axis.
        widths: Half width (level, across the line) and half thickness of the ellipse at each point.
    """

    line: tuple[Point, ...]
    widths: tuple[tuple[float, float], ...]
    surface: Surface

    def mesh(self) -> Mesh:
        """Its mesh."""
        line = np.array(self.line)
        along = np.gradient(line, axis=0)
        along /= np.linalg.norm(along, axis=1, keepdims=True).clip(1e-9)
        # Level where the line is not upright; there, any direction across it.
        across = np.cross([0.0, 0.0, 1.0], along)
        steep = np.linalg.norm(across, axis=1) < 0.05
        across[steep] = np.cross(along[steep], [0.0, 1.0, 0.0])
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        upwards = np.cross(along, across)
        angles = np.linspace(0, 2 * np.pi, RING, endpoint=False)
        widths = np.array(self.widths)
        vertices = (
            line[:, None]
            + np.cos(angles)[None, :, None] * widths[:, None, :1] * across[:, None]
            + np.sin(angles)[None, :, None] * widths[:, None, 1:] * upwards[:, None]
        )
        return _bridge(vertices)


@dataclass(frozen=True)
class Slab:
    """An upright box, turned around z.

    Attributes:
        size: Width, depth, height.
        middle: The middle of its underside.
        yaw: Radians, counterclockwise from above.
    """

    size: tuple[float, float, float]
    middle: Point
    surface: Surface
    yaw: float = 0.0

    def mesh(self) -> Mesh:
        """Its mesh."""
        signs = np.array([[x, y, z] for z in (0, 1) for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))])
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        return _bridge(((signs * self.size) @ turn.T + self.middle).reshape(2, 4, 3))


Part = Turned | Swept | Slab


@dataclass(frozen=True)
class Thing:
    """A drawn object.

    Attributes:
        name: What it is.
        parts: What it is made of.
        size: Width, depth and height of its bounding box; the middle of the box's underside is at the origin.
        foot: Radius of a circle around the origin that holds all that touches the ground.
        top: Height of the surface that another thing can stand on, and the radius of this surface; None: nothing can.
    """

    name: str
    parts: tuple[Part, ...]
    size: tuple[float, float, float]
    foot: float
    top: tuple[float, float] | None = None


def make_thing(name: str, parts: tuple[Part, ...], top: tuple[float, float] | None = None) -> Thing:
    """A thing whose size is that of the smallest box around the origin that holds its parts."""
    vertices = np.concatenate([part.mesh().vertices for part in parts])
    reach = 2 * np.abs(vertices[:, :2]).max(0)
    foot = np.linalg.norm(vertices[vertices[:, 2] < 0.005, :2], axis=1).max()
    return Thing(name, parts, (float(reach[0]), float(reach[1]), float(vertices[:, 2].max())), float(foot), top)


def _bridge(rings: np.ndarray) -> Mesh:
    """Joins rings of corners by faces, with one more over each end.

    Args:
        rings: R×C×3, at least two rings of at least three corners.
    """
    number, corners = rings.shape[:2]
    closed = np.concatenate([rings, rings[:, :1]], axis=1)
    around = np.linalg.norm(np.diff(closed, axis=1), axis=-1)
    widest = around[around.sum(1).argmax()]
    u = np.concatenate([[0.0], np.cumsum(widest)])
    v = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(rings, axis=0), axis=-1).mean(1))])
    faces: list[tuple[int, ...]] = []
    texture = []
    for ring in range(number - 1):
        for corner in range(corners):
            following = (corner + 1) % corners
            low, high = ring * corners, (ring + 1) * corners
            faces.append((low + corner, low + following, high + following, high + corner))
            left, right = u[corner], u[corner + 1]
            texture += [(left, v[ring]), (right, v[ring]), (right, v[ring + 1]), (left, v[ring + 1])]
    vertices = rings.reshape(-1, 3)
    for end in (range(corners - 1, -1, -1), range((number - 1) * corners, number * corners)):
        faces.append(tuple(end))
        texture += [(vertices[corner, 0], vertices[corner, 1]) for corner in end]
    return Mesh(vertices, faces, np.array(texture))
