"""From log depth to the picture that a depth ControlNet is conditioned on.

Depth ControlNets are trained on relative *inverse* depth, as MiDaS makes it: near is white, far is black. DepthFM
predicts log depth, in which near is low. Pipelines, training and evaluation all convert with the function below.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .utils.choices import CONTROL_MODES

DEFAULT_CONTROL_PERCENTILES = (2.0, 98.0)  # as the normalisation of the depth maps that the model learns


def control_image_from_log_depth(
    log_depth: torch.Tensor,
    control_mode: str = "disparity",
    percentiles: Sequence[float] = DEFAULT_CONTROL_PERCENTILES,
) -> torch.Tensor:
    """Makes control images of log depth maps, each normalised by itself.

    With y the log depth, v = exp(-y) for `"disparity"` and v = exp(y) for `"depth"`; the control image is
    (v - v_low) / (v_high - v_low), clipped to [0, 1], where v_low and v_high are percentiles of that map's v (taken of
    log v, where one falls between two pixels). It is rounded to 8 bits, so that an image read back from a PNG file
    conditions exactly as the tensor does.

    The unit of the depth does not matter: adding a constant to y changes nothing. DepthFM's log depth is also scaled
    by an unknown factor (a power of the depth), and is taken as it is.

    Args:
        log_depth: N×1×H×W, finite: DepthFM's `log_depth`, or the logarithm of a depth in any unit.
        control_mode: `"disparity"`: near is white (1) and far is black (0), which is what published depth ControlNets
            expect. `"depth"`: near is black and far is white, for ControlNets that were trained on depth.
        percentiles: The percentiles that become 0 and 1, in percent; (0, 100) is min-max, as MiDaS's own maps.

    Returns:
        N×3×H×W, float32 multiples of 1/255 in [0, 1], three equal channels, on the device of `log_depth`, without
        gradient. A map that is constant up to rounding gives 0. Where both percentiles are equal but the map is not
        constant, values above them give 1 and all others 0.

    Raises:
        ValueError: If `log_depth` has another shape, no pixels, or is not finite, or if the mode or the percentiles
            are not acceptable.
    """
    check_control_arguments(control_mode, percentiles)
    if log_depth.ndim != 4 or log_depth.shape[1] != 1 or log_depth.numel() == 0:
        raise ValueError(f"`log_depth` must have shape N×1×H×W with at least one pixel, got {tuple(log_depth.shape)}.")
    log_depth = log_depth.detach().float()
    if not torch.isfinite(log_depth).all():
        raise ValueError("`log_depth` holds NaN or infinite values: fill holes before making a control image.")
    return torch.cat([_control_image(one[None], control_mode, percentiles) for one in log_depth])


def check_control_arguments(control_mode: str, percentiles: Sequence[float]) -> None:
    """Checks what can be checked before there is a depth.

    Raises:
        ValueError: If `control_mode` is unknown, or `percentiles` are not two rising numbers in [0, 100].
    """
    if control_mode not in CONTROL_MODES:
        raise ValueError(f"`control_mode` must be one of {CONTROL_MODES}, got {control_mode!r}.")
    try:
        low, high = (float(percentile) for percentile in percentiles)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not 0 <= low < high <= 100:
        raise ValueError(
            f"The percentiles of the control image must be two numbers, 0 <= low < high <= 100, got {percentiles!r}."
        )


def _control_image(log_depth: torch.Tensor, control_mode: str, percentiles: Sequence[float]) -> torch.Tensor:
    """Makes one control image 1×3×H×W of one map 1×1×H×W."""
    exponent = -log_depth if control_mode == "disparity" else log_depth
    # exp keeps the order, so its percentiles are those of the exponents, which cannot overflow. NumPy: torch.quantile
    # refuses more than 2**24 values.
    low, high = np.percentile(exponent.cpu().numpy().astype(np.float64), percentiles)
    rounding = 8 * torch.finfo(log_depth.dtype).eps * max(1.0, log_depth.abs().max().item())
    if high - low > rounding:
        # (exp(x) - exp(low)) / (exp(high) - exp(low)), with both divided by exp(high).
        scaled = 1 - torch.expm1(exponent.clamp(low, high) - high) / np.expm1(low - high)
    else:
        scaled = (exponent > high + rounding).to(exponent.dtype)
    return ((scaled.clamp(0, 1) * 255).round() / 255).expand(-1, 3, -1, -1)
