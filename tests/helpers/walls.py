"""Walls as depth maps whose normals are known."""

from __future__ import annotations

import torch

from depthfm_diffusers.geometry import intrinsics_from_fov


def wall(slope: float, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth of the plane z = 3 - slope x, and intrinsics of a 60 degree camera."""
    intrinsics = intrinsics_from_fov(60.0, size, size)
    x = (torch.arange(size) - (size - 1) / 2) / intrinsics[0, 0]
    return (3 / (1 + slope * x)).expand(1, 1, size, size).clone(), intrinsics[None]
