"""Scheduler that carries an image's latent to its depth map's latent by flow matching."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

# Number of network evaluations that one step of each solver takes.
_SOLVER_ORDERS = {"euler": 1, "midpoint": 2, "heun": 2}


@dataclass
class FlowMatchingImageToDepthSchedulerOutput(BaseOutput):
    """Output of `FlowMatchingImageToDepthScheduler.step`.

    Args:
        prev_sample: The next input of the network, shape and dtype of the sample: the state at the end of the step, or
            between the stages of a two-stage solver, the state at which the second velocity is wanted.
        pred_original_sample: The end point x_1 (the depth map's latent) that this evaluation predicts,
            `x_t + (1 - t) v`. Shape and dtype of the sample.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class FlowMatchingImageToDepthScheduler(SchedulerMixin, ConfigMixin):
    """Scheduler of DepthFM: an ODE from an image's latent to its depth map's latent.

    Of [DepthFM](https://arxiv.org/abs/2403.13788), with the formulas of its authors' code. Flow time t runs upwards
    from 0, the image, to 1, the depth map, along straight paths `x_t = (1 - t) x_0 + t x_1`, whose velocity
    `x_1 - x_0` the network predicts. The source x_0 is the image's latent with the noise of a cosine schedule added:
    `sqrt(a) z + sqrt(1 - a) noise`, `a(s) = sigmoid(-2 log(tan(pi s / 2) + 1e-5))`, `s = step / num_train_timesteps`.

    After `set_timesteps`, each solver is used in the same way:

    ```python
    sample = scheduler.augment(image_latent, noise)
    for t in scheduler.timesteps:
        model_input = torch.cat([scheduler.scale_model_input(sample, t), image_latent], dim=1)
        velocity = unet(model_input, t * scheduler.config.timestep_scale, embedding).sample
        sample = scheduler.step(velocity, t, sample).prev_sample
    ```

    A step of `"midpoint"` or `"heun"` takes two evaluations, so `timesteps` has `order` entries per step. Arithmetic
    is in float32 at least (float64 for float64 samples); results have the sample's dtype.

    Args:
        num_train_timesteps: Number of steps of the cosine noise schedule.
        noise_augmentation_step: Step of the cosine schedule whose noise the source gets, from 0 (none) to
            `num_train_timesteps`. DepthFM was trained at 400: 0.809 of the signal, 0.588 of the noise.
        solver_type: `"euler"` (first order), `"midpoint"` or `"heun"` (the explicit trapezoid; both second order).
        timestep_scale: What the network takes for time is `t * timestep_scale`; the caller multiplies. DepthFM's
            network takes t in [0, 1] as it is: 1.0. `timesteps` is not scaled.

    Raises:
        TypeError: If a number is not one.
        ValueError: If an argument is out of its range.
    """

    _compatibles: ClassVar[list[str]] = []
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        noise_augmentation_step: int = 400,
        solver_type: str = "euler",
        timestep_scale: float = 1.0,
    ) -> None:
        given: dict[str, object] = {
            "num_train_timesteps": num_train_timesteps,
            "noise_augmentation_step": noise_augmentation_step,
            "timestep_scale": timestep_scale,
        }
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"`{name}` must be a number, got {value!r}.")
        if num_train_timesteps < 1:
            raise ValueError(f"`num_train_timesteps` must be at least 1, got {num_train_timesteps}.")
        if not 0 <= noise_augmentation_step <= num_train_timesteps:
            raise ValueError(
                f"`noise_augmentation_step` must lie between 0 and `num_train_timesteps` ({num_train_timesteps}), got "
                f"{noise_augmentation_step}."
            )
        if solver_type not in _SOLVER_ORDERS:
            raise ValueError(f"`solver_type` must be one of {list(_SOLVER_ORDERS)}, got {solver_type!r}.")
        if not (math.isfinite(timestep_scale) and timestep_scale > 0):
            raise ValueError(f"`timestep_scale` must be a positive number, got {timestep_scale}.")

        # Network evaluations per step of the solver.
        self.order = _SOLVER_ORDERS[solver_type]
        # Standard deviation that the initial noise is expected to have.
        self.init_noise_sigma = 1.0
        # Filled by `set_timesteps`.
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)

        # The times of `timesteps`, and the boundaries of the steps (one more than steps), in full precision on the
        # host: reading them never waits for a device. `_grid` is the tensor that was made of the times.
        self._times: list[float] = []
        self._boundaries: list[float] = []
        self._grid = self.timesteps
        # Sample and velocity at the start of the step, between the two stages of a solver.
        self._first_stage: tuple[torch.Tensor, torch.Tensor] | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def step_index(self) -> int | None:
        """Index into `timesteps` of the next call of `step`; `None` before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index into `timesteps` at which the first call of `step` starts, if `set_begin_index` set one."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sets the index of the first timestep, instead of having it looked up in `timesteps` at the first step."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        """Makes the time grid, and forgets everything about an earlier run, finished or not.

        Args:
            num_inference_steps: Number of equal steps from t = 0 to t = 1. May be left out if `timesteps` is given.
            device: Where `timesteps` is put.
            timesteps: Flow times at which the steps start, strictly increasing, in [0, 1); the last step ends at 1.
                For a solver with two stages, the times of the second stages are added.

        Raises:
            TypeError: If `num_inference_steps` is not an integer.
            ValueError: If it is less than 1, if neither argument is given, if their lengths differ, or if `timesteps`
                is empty, not strictly increasing, or outside [0, 1).
        """
        if timesteps is not None:
            starts = [float(t) for t in timesteps]
            if num_inference_steps is not None and num_inference_steps != len(starts):
                raise ValueError(
                    f"`timesteps` has {len(starts)} entries, but `num_inference_steps` is {num_inference_steps}. Give "
                    "one of the two."
                )
            boundaries = [*starts, 1.0]
            if not starts or not starts[0] >= 0 or not all(a < b for a, b in pairwise(boundaries)):
                raise ValueError(
                    "`timesteps` must be the strictly increasing times at which steps start, in [0, 1); the last step "
                    f"ends at 1 without being listed. Got {starts}."
                )
        elif num_inference_steps is not None:
            try:
                n = operator.index(num_inference_steps)
            except TypeError:
                n = None
            if n is None or isinstance(num_inference_steps, bool):
                raise TypeError(f"`num_inference_steps` must be an integer, got {num_inference_steps!r}.")
            if n < 1:
                raise ValueError(f"`num_inference_steps` must be at least 1, got {n}.")
            boundaries = [i / n for i in range(n + 1)]
        else:
            raise ValueError("Give `num_inference_steps` or `timesteps`.")

        times: list[float] = []
        for start, end in pairwise(boundaries):
            times.append(start)
            if self.config.solver_type == "midpoint":
                times.append((start + end) / 2)
            elif self.config.solver_type == "heun":
                times.append(end)

        self.num_inference_steps = len(boundaries) - 1
        self.timesteps = self._grid = torch.tensor(times, dtype=torch.float32, device=device)
        self._boundaries = boundaries
        self._times = times
        self._first_stage = None
        self._step_index = None
        self._begin_index = None

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Returns the sample unchanged; here so that schedulers can be exchanged."""
        return sample

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Finds a flow time in `timesteps`.

        Args:
            timestep: One of `timesteps`, possibly rounded to the dtype of a tensor.

        Returns:
            Its index; of two (the end of one Heun step and the start of the next), the one that starts a step.

        Raises:
            ValueError: If it is not among `timesteps`.
        """
        time = self._host_time(timestep)
        distances = [abs(t - time) for t in self._times]
        nearest = min(distances)
        if nearest > _rounding_of(timestep):
            raise ValueError(
                f"`timestep` {time} is not among `scheduler.timesteps`: {self._times}.{_index_hint(timestep)}"
            )
        return max(i for i, distance in enumerate(distances) if distance == nearest)

    def _host_time(self, timestep: float | torch.Tensor) -> float:
        """Returns a flow time as a number, without reading from the device what the host knows."""
        if isinstance(timestep, torch.Tensor) and timestep.numel() == 1 and timestep.dtype == self._grid.dtype:
            grid = self._grid.untyped_storage().data_ptr()
            if grid != 0 and timestep.untyped_storage().data_ptr() == grid:
                return self._times[timestep.storage_offset()]
        return float(timestep)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> FlowMatchingImageToDepthSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Advances by one evaluation of the network.

        A time that is taken from `timesteps` (by iterating over it, or by an index) is known on the host. Another
        tensor on a GPU is read, which waits until the GPU has done all that was asked of it.

        Args:
            model_output: Velocity that the network predicts at `sample`; shape of `sample`.
            timestep: The current one of `timesteps`: a flow time, not an index.
            sample: Current state, any shape.
            return_dict: Whether to return an output object instead of a tuple.

        Returns:
            `FlowMatchingImageToDepthSchedulerOutput`, or the tuple `(prev_sample, pred_original_sample)`.

        Raises:
            ValueError: If `set_timesteps` was not called, or all its steps were taken; if `timestep` is not among
                `timesteps`, or not the next of them; if the shapes of `model_output` and `sample` differ, or the
                sample's shape changes between two stages.
        """
        if self.num_inference_steps is None:
            raise ValueError("`step` was called before `set_timesteps`: call `scheduler.set_timesteps(n)` first.")
        if isinstance(timestep, torch.Tensor) and timestep.numel() != 1:
            raise ValueError(f"`timestep` must be a single flow time, got shape {tuple(timestep.shape)}.")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` must have the shape of `sample`, {tuple(sample.shape)}, got "
                f"{tuple(model_output.shape)}."
            )
        time = self._host_time(timestep)
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if not 0 <= self._step_index < len(self._times):
            raise ValueError(
                f"There is no evaluation {self._step_index + 1} of {len(self._times)}: all steps were taken. Call "
                "`scheduler.set_timesteps(n)` to start again."
            )
        if abs(time - self._times[self._step_index]) > _rounding_of(timestep):
            raise ValueError(
                f"`timestep` {time} is out of order: the next one is {self._times[self._step_index]}. To "
                f"start again, call `scheduler.set_timesteps(n)`.{_index_hint(timestep)}"
            )

        interval, stage = divmod(self._step_index, self.order)
        step_size = self._boundaries[interval + 1] - self._boundaries[interval]
        compute_dtype = torch.promote_types(sample.dtype, torch.float32)
        state, velocity = sample.to(compute_dtype), model_output.to(compute_dtype)
        pred_original_sample = state + (1.0 - self._times[self._step_index]) * velocity

        if stage == 0 and self.order == 1:
            prev_sample = state + step_size * velocity
        elif stage == 0:
            self._first_stage = (state, velocity)
            prev_sample = state + (self._times[self._step_index + 1] - self._times[self._step_index]) * velocity
        else:
            if self._first_stage is None:
                raise ValueError(
                    f"`timestep` {time} is the second evaluation of a {self.config.solver_type} step, "
                    "whose first was not made. Start at the first: an even index of `scheduler.timesteps`."
                )
            start, start_velocity = self._first_stage
            if start.shape != state.shape:
                raise ValueError(
                    f"`sample` must keep its shape within a step, {tuple(start.shape)}, got {tuple(state.shape)}. "
                    "Call `scheduler.set_timesteps(n)` before another sample."
                )
            if self.config.solver_type == "heun":
                velocity = (start_velocity + velocity) / 2
            prev_sample = start + step_size * velocity
            self._first_stage = None
        self._step_index += 1

        prev_sample = prev_sample.to(sample.dtype)
        pred_original_sample = pred_original_sample.to(sample.dtype)
        if not return_dict:
            return (prev_sample, pred_original_sample)
        return FlowMatchingImageToDepthSchedulerOutput(
            prev_sample=prev_sample, pred_original_sample=pred_original_sample
        )

    def add_noise(
        self,
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: float | torch.Tensor,
    ) -> torch.Tensor:
        """Adds the noise of a step of the cosine schedule (of Nichol and Dhariwal, as DepthFM's authors compute it).

        Args:
            original_samples: Samples, B×....
            noise: Gaussian noise of unit variance, of the shape of `original_samples`.
            timesteps: Steps of the cosine schedule (not flow times), from 0 (exactly no noise) to
                `num_train_timesteps`, fractions allowed: one number, or a tensor of one, or of one per sample, of
                shape B or B×1×....

        Returns:
            `sqrt(a) original_samples + sqrt(1 - a) noise`, in the dtype of `original_samples`.

        Raises:
            ValueError: If shapes do not match, or a step is out of range.
        """
        if noise.shape != original_samples.shape:
            raise ValueError(
                f"`noise` must have the shape of the samples, {tuple(original_samples.shape)}, got "
                f"{tuple(noise.shape)}."
            )
        last = self.config.num_train_timesteps
        # On the host in float64: near the last step, tan is beyond float32 (and some devices have no float64).
        steps = torch.as_tensor(timesteps, dtype=torch.float64, device="cpu")
        if not all(0 <= step <= last for step in steps.flatten().tolist()):
            raise ValueError(f"`timesteps` must lie between 0 and {last}, got {steps.tolist()}.")
        # a = sigmoid(-2 log(r)) = 1 / (1 + r^2), where r is the noise-to-signal ratio. The 1e-5 only keeps the
        # logarithm finite; at step 0 the authors add no noise.
        ratio = torch.where(steps > 0, torch.tan(math.pi / 2 * steps / last) + 1e-5, torch.zeros_like(steps))
        signal = torch.rsqrt(1 + ratio**2)
        compute_dtype = torch.promote_types(original_samples.dtype, torch.float32)
        signal_weight, noise_weight = (
            _per_sample(weight.to(compute_dtype), original_samples, "timesteps") for weight in (signal, ratio * signal)
        )
        noisy = signal_weight * original_samples.to(compute_dtype) + noise_weight * noise.to(compute_dtype)
        return noisy.to(original_samples.dtype)

    def augment(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Makes the source x_0 of the flow: the image's latent with the noise of `noise_augmentation_step`.

        Args:
            latents: Latents of images, B×C×h×w, scaled by the autoencoder's scaling factor.
            noise: Gaussian noise of unit variance, of the same shape.

        Returns:
            x_0, shape and dtype of `latents`.

        Raises:
            ValueError: If the shapes differ.
        """
        return self.add_noise(latents, noise, self.config.noise_augmentation_step)

    def interpolate(self, source: torch.Tensor, target: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        """Returns the point of the straight path between source and target, `x_t = (1 - t) x_0 + t x_1`.

        Args:
            source: x_0, B×....
            target: x_1, of the same shape.
            t: Flow time in [0, 1]: one number, or a tensor of one, or of one per sample, of shape B or
                B×1×....

        Returns:
            x_t, in the dtype of `source`.

        Raises:
            ValueError: If shapes do not match, or a time is outside [0, 1] (not checked for a tensor on a GPU).
        """
        _check_same_shape(source, target)
        compute_dtype = torch.promote_types(source.dtype, torch.float32)
        times = torch.as_tensor(t, dtype=compute_dtype)
        # Of a tensor on a GPU, the values could only be read by waiting for them.
        if times.device.type == "cpu" and not all(0 <= time <= 1 for time in times.flatten().tolist()):
            raise ValueError(f"`t` must lie in [0, 1], got {times.tolist()}.")
        time = _per_sample(times, source, "t")
        return ((1 - time) * source.to(compute_dtype) + time * target.to(compute_dtype)).to(source.dtype)

    def get_velocity(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the velocity of the straight path from source to target, `x_1 - x_0`: what the network predicts.

        Args:
            source: x_0, any shape.
            target: x_1, of the same shape.

        Returns:
            The velocity, in the dtype of `source`.

        Raises:
            ValueError: If the shapes differ.
        """
        _check_same_shape(source, target)
        compute_dtype = torch.promote_types(source.dtype, torch.float32)
        return (target.to(compute_dtype) - source.to(compute_dtype)).to(source.dtype)


def _rounding_of(timestep: float | torch.Tensor) -> float:
    """Returns by how much a time may differ because of rounding to float32, or to the dtype of its tensor."""
    if isinstance(timestep, torch.Tensor) and timestep.is_floating_point():
        return max(1e-6, torch.finfo(timestep.dtype).eps)
    return 1e-6


def _index_hint(timestep: float | torch.Tensor) -> str:
    """Returns what to add to an error about a timestep that looks like an index into `timesteps`."""
    if isinstance(timestep, torch.Tensor):
        integer = not timestep.is_floating_point()
    else:
        integer = isinstance(timestep, numbers.Integral)
    if not integer:
        return ""
    return " Timesteps are flow times from 0 to 1; indices, as from `enumerate(scheduler.timesteps)`, do not work."


def _check_same_shape(source: torch.Tensor, target: torch.Tensor) -> None:
    if source.shape != target.shape:
        raise ValueError(
            f"`target` must have the shape of `source`, {tuple(source.shape)}, got {tuple(target.shape)}."
        )


def _per_sample(values: torch.Tensor, samples: torch.Tensor, name: str) -> torch.Tensor:
    """Shapes values so that they broadcast over samples B×...: one value, left on the host, or one per sample."""
    count = samples.shape[0]
    if values.numel() != 1 and values.shape not in ((count,), (count, *[1] * (samples.ndim - 1))):
        raise ValueError(f"`{name}` must be one number or one per sample ({count}), got shape {tuple(values.shape)}.")
    if values.numel() == 1 and values.device.type == "cpu":
        # A tensor without dimensions is combined with one on any device, without a copy that waits for that device.
        return values.reshape(())
    return values.to(samples.device).reshape(-1, *[1] * (samples.ndim - 1))
