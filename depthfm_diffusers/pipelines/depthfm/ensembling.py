"""Mean and spread of several predictions of one image, in log depth."""

from __future__ import annotations

import torch


def ensemble_log_depth(members: torch.Tensor) -> torch.Tensor:
    """Returns the mean of the members' log depth, without aligning them: DepthFM's members share one normalised range.

    Args:
        members: Log depth of E members, E×H×W or E×1×H×W.

    Returns:
        The mean, H×W or 1×H×W.

    Raises:
        ValueError: If the shape is another one, or there is no member.
    """
    _check_members(members, at_least=1)
    return members.mean(dim=0)


def ensemble_uncertainty(members: torch.Tensor) -> torch.Tensor:
    """Returns the standard deviation of the members per pixel, after aligning them to each other by scale and shift.

    Each member is shifted and scaled to one common mean and one common standard deviation over its pixels, the
    averages of the members' own. This is symmetric in the members, leaves no difference between members that are
    positive affine copies of each other, and cannot shrink a member towards zero as a least-squares fit to another
    one would. A constant member has no scale and stays constant.

    Args:
        members: Log depth of E ≥ 2 members, E×H×W or E×1×H×W.

    Returns:
        The sample standard deviation (divisor E - 1) in units of log depth, H×W or 1×H×W, float32 (float64 if
        `members` is).

    Raises:
        ValueError: If the shape is another one, or there are fewer than two members.
    """
    _check_members(members, at_least=2)
    members = members.to(torch.promote_types(members.dtype, torch.float32))
    pixels = tuple(range(1, members.ndim))
    mean = members.mean(dim=pixels, keepdim=True)
    centred = members - mean
    scale = centred.square().mean(dim=pixels, keepdim=True).sqrt()
    # A spread within rounding of the values is no spread: dividing by it would blow rounding up to full scale.
    rounding = 8 * torch.finfo(members.dtype).eps * members.abs().amax(dim=pixels, keepdim=True)
    constant = scale <= rounding
    standardised = torch.where(constant, 0.0, centred / torch.where(constant, 1.0, scale))
    return (standardised * scale.mean()).std(dim=0)


def _check_members(members: torch.Tensor, at_least: int) -> None:
    """Checks the shape of `members`: E×H×W or E×1×H×W, E not below `at_least`, at least one pixel."""
    if members.ndim not in (3, 4) or (members.ndim == 4 and members.shape[1] != 1) or members.numel() == 0:
        raise ValueError(f"`members` must be E×H×W or E×1×H×W and not empty, got shape {tuple(members.shape)}.")
    if members.shape[0] < at_least:
        raise ValueError(f"`members` must hold at least {at_least} predictions, got {members.shape[0]}.")
