"""Depth of frames that follow each other, made steady: one frame at a time, with constant memory.

Each frame has the noise of the same seed. Its log depth is brought to the scale and shift of the frame before by a
robust fit, and mixed with that frame's where optical flow finds the same surface again at the same log depth. At a cut
all this begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...image_processing import process_images, resize
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ...temporal import FOUND_AT_CUT, fit_scale_and_shift, found_again, optical_flow, soften, warp
from ..prediction import PredictionSettings

# Largest weight of the frame before in the mix, and the difference of log depth at which it becomes 0.
BLEND, TOLERANCE = 0.9, 1.0
# Quantiles of a frame's log depth that count for the range of its shot.
RANGE = (0.005, 0.995)


@dataclass
class SteadyState:
    """What is kept from one frame to the next.

    Attributes:
        number: Frames so far.
        shot: Number of the shot, from 0; a cut begins the next.
        low: Least log depth of the shot so far, by the quantiles `RANGE` of its frames.
        high: Greatest log depth, likewise.
        grey: h×w uint8, the last frame at the size of processing.
        log_depth: h×w float32, its steady log depth.
    """

    number: int
    shot: int
    low: float
    high: float
    grey: NDArray[np.uint8]
    log_depth: NDArray[np.float32]

    def arrays(self) -> dict[str, NDArray]:
        """Returns the state as arrays, for a file."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> SteadyState:
        """Returns the state that `arrays` stands for."""
        return cls(
            number=int(arrays["number"]),
            shot=int(arrays["shot"]),
            low=float(arrays["low"]),
            high=float(arrays["high"]),
            grey=arrays["grey"],
            log_depth=arrays["log_depth"],
        )


@dataclass(frozen=True)
class VideoDepth:
    """Depth of one frame.

    Attributes:
        log_depth: H×W float32: steady over the frames of a shot. The true log depth is a·value + b, with a > 0 and b
            unknown, but nearly the same for all frames of the shot.
        depth: H×W float32 in [0, 1], 0 near and 1 far: exp(log depth), scaled from the range of the shot so far, which
            only grows.
        shot: Number of the shot, from 0; log depths of different shots cannot be compared.
    """

    log_depth: NDArray[np.float32]
    depth: NDArray[np.float32]
    shot: int


class SteadyPredictor:
    """Predicts frames in order.

    Args:
        pipe: The pipeline.
        settings: How each frame is predicted.
        state: The state after the frames before, to go on from there; `None`: at the beginning.

    Attributes:
        state: The state after the last frame; `None` before the first.
        frame_size: Height and width of the last frame.
    """

    def __init__(self, pipe: DepthFMPipeline, settings: PredictionSettings, state: SteadyState | None = None) -> None:
        self._pipe, self._settings = pipe, settings.resolve(pipe)
        self.state, self.frame_size = state, (0, 0)

    def predict(self, image: Any) -> SteadyState:
        """Predicts the next frame.

        Args:
            image: One image of any kind that the pipeline takes, of the size of the frames before.

        Returns:
            The new state, whose log depth is the frame's.

        Raises:
            ValueError: If the image cannot be used, or has another size than the frame before.
        """
        grey = self._grey(image)
        _, maps, *_ = self._pipe(
            image, **self._settings.call_arguments(), match_input_resolution=False, return_dict=False
        )
        self.state = advance(self.state, grey, maps[0, ..., 0])
        return self.state

    def _grey(self, image: Any) -> NDArray[np.uint8]:
        processed = process_images(image, self._settings.processing_resolution or 0, "bilinear", 1)
        if len(processed) != 1:
            raise ValueError(f"`frames`: each must be one image, got {len(processed)} in one.")
        weights = torch.tensor([0.299, 0.587, 0.114])
        self.frame_size = processed[0].original_size
        levels = (processed[0].pixels[0].cpu() + 1) / 2 * 255
        return (levels * weights[:, None, None]).sum(0).round().clamp(0, 255).to(torch.uint8).numpy()


def advance(state: SteadyState | None, grey: NDArray[np.uint8], log_depth: NDArray[np.float32]) -> SteadyState:
    """Makes the log depth of a frame steady.

    Args:
        state: After the frame before; `None` for the first.
        grey: h×w, the frame.
        log_depth: h×w, its log depth as predicted.

    Returns:
        The state after the frame.

    Raises:
        ValueError: If the size is not that of the frame before.
    """
    low, high = (float(value) for value in np.quantile(log_depth, RANGE))
    if state is None:
        return SteadyState(1, 0, low, high, grey, log_depth)
    if grey.shape != state.grey.shape:
        raise ValueError(
            f"`frames`: frame {state.number} is processed at {grey.shape[1]}×{grey.shape[0]}, those before at "
            f"{state.grey.shape[1]}×{state.grey.shape[0]}. All frames must have one size."
        )
    flow = optical_flow(grey, state.grey)
    found = found_again(grey, state.grey, flow)
    if found.mean() < FOUND_AT_CUT:
        return SteadyState(state.number + 1, state.shot + 1, low, high, grey, log_depth)
    before = warp(state.log_depth, flow)
    fit = fit_scale_and_shift(log_depth, before, found.astype(np.float32))
    aligned = log_depth if fit is None else (fit[0] * log_depth + fit[1]).astype(np.float32)
    agreement = np.clip(1 - np.abs(before - aligned) / TOLERANCE, 0, 1) * soften(found)
    steady = aligned + (BLEND * agreement * (before - aligned)).astype(np.float32)
    low, high = (float(value) for value in np.quantile(steady, RANGE))
    return SteadyState(state.number + 1, state.shot, min(low, state.low), max(high, state.high), grey, steady)


def predict_video(
    pipe: DepthFMPipeline, frames: Iterable[Any], settings: PredictionSettings | None = None
) -> Iterator[VideoDepth]:
    """Predicts the frames of a video, one by one as they come, steadily.

    ```python
    for frame in predict_video(pipe, frames):
        show(frame.depth)
    ```

    Args:
        pipe: The pipeline.
        frames: Images of one size, of any kind that `DepthFMPipeline` takes; a generator is read as results are asked
            for, and only the last frame is kept.
        settings: How each frame is predicted; `None`: as the model does by default.

    Yields:
        For each frame, its depth, of the frame's size.

    Raises:
        ImportError: If OpenCV is not installed.
        TypeError: If a frame is of a type that is not accepted.
        ValueError: If a frame cannot be used, or has another size than the first.
        RuntimeError: If the network's output is not finite.
    """
    predictor = SteadyPredictor(pipe, settings or PredictionSettings())
    for image in frames:
        state = predictor.predict(image)
        log_depth = to_size(state.log_depth, predictor.frame_size)
        yield VideoDepth(log_depth, depth_in_range(log_depth, state.low, state.high), state.shot)


def to_size(log_depth: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resizes log depth, h×w, to a height and width."""
    return resize(torch.from_numpy(log_depth)[None, None], size, "bilinear")[0, 0].numpy()


def depth_in_range(log_depth: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Makes depth of log depth by exp, with a given range: 0 at `low` and below, 1 at `high` and above.

    Args:
        log_depth: H×W.
        low: Log depth that becomes 0.
        high: Log depth that becomes 1; if it is not greater than `low`, the depth is 0 everywhere.
    """
    if not high > low:
        return np.zeros_like(log_depth)
    values = log_depth.astype(np.float64).clip(low, high)
    return ((np.exp(values - high) - np.exp(low - high)) / -np.expm1(low - high)).astype(np.float32)
