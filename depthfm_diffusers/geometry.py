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


def edge_aware_normals(depth: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """Returns the unit surface normals of a depth map, which are not smeared over depth jumps.

    The inverse depth of a plane is linear in the pixel's position, so its slopes along x and y give the normal. A
    slope is the mean of the differences to the two neighbours. Where the difference to one of them is a jump, it is
    the difference to the other one alone. A difference is a jump if it departs from those that come before and after
    it, more than three times as much as the other difference does, and by more than a tenth of what a surface at 45
    degrees gives from one pixel to the next. Exact on planes, up to the pixel beside a jump.

    `depth_to_normals` is the differentiable one, for losses and metrics.

    Args:
        depth: B×1×H×W. Pixels that are 0, negative or not finite have no depth.
        intrinsics: B×3×3 for this resolution; or 3×3, shared by the batch.

    Returns:
        Normals, B×3×H×W, float32 (float64 if `depth` is), facing the camera, in OpenCV axes: a wall seen head-on has
        (0, 0, -1). Zero where there is no depth, or no neighbour with a depth along x or along y.

    Raises:
        ValueError: If a shape does not fit.
    """
    rays = unproject(torch.ones_like(depth), intrinsics)
    known = torch.isfinite(depth) & (depth > 0)
    inverse = torch.where(known, 1 / depth.to(rays.dtype), torch.nan)[:, 0]
    focal = intrinsics.to(rays).reshape(-1, 3, 3)[:, (0, 1), (0, 1)][..., None, None]
    along_x = _slope(inverse, inverse / focal[:, 0]) * focal[:, 0]
    along_y = _slope(inverse.mT, (inverse / focal[:, 1]).mT).mT * focal[:, 1]
    # 1/z = n·ray for the plane n·P = 1.
    along_z = inverse - along_x * rays[:, 0] - along_y * rays[:, 1]
    return F.normalize(-torch.stack([along_x, along_y, along_z], dim=1).nan_to_num(nan=0.0), dim=1)


def _slope(values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Returns the slope along the last axis, ...×W, by `edge_aware_normals`' rule; NaN where there is none.

    Args:
        values: ...×W, NaN where not known.
        unit: ...×W, the difference between neighbours on a surface at 45 degrees.
    """
    missing = torch.full_like(values[..., :1], torch.nan)
    step = torch.cat([missing, values.diff(dim=-1), missing], dim=-1)  # step i: from pixel i - 1 to pixel i

    def lower_neighbour(of: torch.Tensor) -> torch.Tensor:
        padded = F.pad(of, (1, 1), value=torch.inf)
        return torch.minimum(padded[..., :-2], padded[..., 2:])

    change = step.diff(dim=-1).abs().nan_to_num(nan=torch.inf)
    bend = torch.minimum(F.pad(change, (1, 0), value=torch.inf), F.pad(change, (0, 1), value=torch.inf))
    # Between two jumps, as on a thing two pixels wide, nothing comes before or after: there, flat is smooth.
    bend = torch.where(step.abs() < lower_neighbour(bend), torch.minimum(step.abs(), bend), bend)
    bend = torch.where(step.isnan(), torch.inf, bend)
    before, after = bend[..., :-1], bend[..., 1:]
    step_before, step_after = step[..., :-1], step[..., 1:]
    smooth = torch.maximum(before, after) <= 3 * torch.minimum(before, after) + unit / 10
    one_sided = torch.where(step_before.isnan() | (after < before), step_after, step_before)
    both = step_before.isfinite() & step_after.isfinite()
    return torch.where(both & smooth, (step_before + step_after) / 2, one_sided)
