"""Pinhole geometry in OpenCV camera axes: x right, y down, z forward; pixel centres at integer coordinates."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def intrinsics_from_fov(fov_x_deg: float | torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Returns the intrinsics of a pinhole camera: square pixels, principal point in the centre of the image.

    fx = fy = (width / 2) / tan(fov_x / 2) pixels; the centre of an image whose pixel centres are integers is
    ((width - 1) / 2, (height - 1) / 2).

    Args:
        fov_x_deg: Horizontal field of view in degrees, strictly between 0 and 180; one number, or a tensor of B.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        float32, 3×3, or B×3×3 for a tensor of B fields of view (on its device).

    Raises:
        ValueError: If a field of view or a side is out of range, or `fov_x_deg` has more than one dimension.
    """
    fov = torch.as_tensor(fov_x_deg)
    if fov.ndim > 1:
        raise ValueError(f"`fov_x_deg` must be a number or a tensor of one dimension, got shape {tuple(fov.shape)}.")
    if not bool(((fov > 0) & (fov < 180)).all()):
        raise ValueError(f"`fov_x_deg` must be in (0, 180) degrees, got {fov_x_deg}.")
    if height < 1 or width < 1:
        raise ValueError(f"`height` and `width` must be at least 1, got {height} and {width}.")
    # In float64 on the host: not every device has it.
    focal = width / 2 / torch.tan(torch.deg2rad(fov.to("cpu", torch.float64)) / 2)
    intrinsics = torch.zeros(*fov.shape, 3, 3, dtype=torch.float64)
    intrinsics[..., 0, 0] = focal
    intrinsics[..., 1, 1] = focal
    intrinsics[..., 0, 2] = (width - 1) / 2
    intrinsics[..., 1, 2] = (height - 1) / 2
    intrinsics[..., 2, 2] = 1
    return intrinsics.to(fov.device, torch.float32)


def unproject(depth: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """Lifts a planar depth map to points in camera axes: P(u, v) = z(u, v)·((u - cx)/fx, (v - cy)/fy, 1).

    Args:
        depth: B×1×H×W, distance along the optical axis; the points have its unit.
        intrinsics: B×3×3, without skew, for this resolution; or 3×3, shared by the batch.

    Returns:
        Points, B×3×H×W, float32 (float64 if `depth` is). Differentiable.

    Raises:
        ValueError: If a shape does not fit.
    """
    if depth.ndim != 4 or depth.shape[1] != 1:
        raise ValueError(f"`depth` must be B×1×H×W, got shape {tuple(depth.shape)}.")
    if intrinsics.shape[-2:] != (3, 3) or intrinsics.shape[:-2] not in ((), (1,), depth.shape[:1]):
        raise ValueError(
            f"`intrinsics` must be 3×3 or {depth.shape[0]}×3×3 for this `depth`, got shape {tuple(intrinsics.shape)}."
        )
    # Half precision cannot hold pixel coordinates above 2048 exactly.
    dtype = torch.promote_types(depth.dtype, torch.float32)
    k = intrinsics.to(device=depth.device, dtype=dtype).reshape(-1, 3, 3, 1, 1)
    u = torch.arange(depth.shape[3], device=depth.device, dtype=dtype)[None, None, :]
    v = torch.arange(depth.shape[2], device=depth.device, dtype=dtype)[None, :, None]
    x = (u - k[:, 0, 2]) / k[:, 0, 0]
    y = (v - k[:, 1, 2]) / k[:, 1, 1]
    rays = torch.stack([t.expand(depth.shape[0], *depth.shape[2:]) for t in (x, y, torch.ones_like(x))], dim=1)
    return depth.to(dtype) * rays


def depth_to_normals(depth: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """Returns the unit surface normals of a depth map, facing the camera.

    The normal is the cross product of the differences between neighbouring points along y and x: central
    differences, one-sided at the image's border. Both are exact on planes. For positive depth it is never zero and
    always faces the camera (its dot product with the viewing ray is negative); a positive factor on the depth does
    not change it.

    Args:
        depth: B×1×H×W, positive, H and W at least 2.
        intrinsics: B×3×3 for this resolution; or 3×3, shared by the batch.

    Returns:
        Normals, B×3×H×W, float32 (float64 if `depth` is), in OpenCV axes: a wall seen head-on has (0, 0, -1).
        Zero where the depths are all zero. Differentiable, with finite gradients on flat maps and at zero depth.

    Raises:
        ValueError: If a shape does not fit, or a side has a single pixel (which has no slope).
    """
    points = unproject(depth, intrinsics)
    if min(depth.shape[2:]) < 2:
        raise ValueError(f"`depth` must have at least 2 pixels along each side, got shape {tuple(depth.shape)}.")
    padded = F.pad(points, (1, 1, 1, 1), mode="replicate")
    # The focal lengths undo the pixel size, which keeps the cross product far from the normalisation's epsilon.
    k = intrinsics.to(points).reshape(-1, 3, 3, 1, 1)
    along_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * k[:, None, 0, 0]
    along_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * k[:, None, 1, 1]
    return F.normalize(torch.linalg.cross(along_y, along_x, dim=1), dim=1)
