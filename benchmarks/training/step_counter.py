"""Counts the memory and the FLOPs of one training step, on tensors that have shapes but no content (or on real ones).

Memory is counted by storage: every storage that an operation allocates counts from then until it is freed, so saved
activations, recomputation, autocast's copies of weights, gradients and temporary results are all in the peak. What
kernels allocate inside themselves (convolution workspaces) and what an allocator loses to fragmentation is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry, register_flop_formula

aten = torch.ops.aten

# torch 2.13 has no formula for the CPU's kernels of the same attention, and would count nothing.
for _suffix in ("", "_backward"):
    _cpu = getattr(aten, f"_scaled_dot_product_flash_attention_for_cpu{_suffix}")
    if _cpu not in flop_registry:
        _formula = flop_registry[getattr(aten, f"_scaled_dot_product_flash_attention{_suffix}")]
        register_flop_formula(_cpu, get_raw=True)(_formula)

# bitsandbytes' defaults: two quantised moments with a float32 scale per block each, unless the tensor is small.
BLOCK_8BIT, MIN_NUMEL_8BIT = 256, 4096


class StepCounter(TorchDispatchMode):
    """Follows the storages that operations allocate, and adds up FLOPs (a multiply-add is two, as torch counts them).

    Args:
        parameters: What exists before and is not counted. A copy of one of these in another type is a weight copy.

    Attributes:
        live: Bytes allocated by operations and not freed yet.
        live_copies: Those of them that are copies of weights.
        peak: Highest `live` so far.
        flops: FLOPs so far, by operation; matrix products, convolutions and attention only.
    """

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        super().__init__()
        self.live = 0
        self.live_copies = 0
        self.peak = 0
        self.flops: dict[str, int] = {}
        self._parameters = {_key(p) for p in parameters}
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operation and counts it."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            name = str(func._overloadpacket)
            self.flops[name] = self.flops.get(name, 0) + formula(*args, **(kwargs or {}), out_val=out)
        is_copy = func is aten._to_copy.default and _key(args[0]) in self._parameters
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._register(leaf, is_copy)
        return out

    @property
    def total_flops(self) -> int:
        """FLOPs so far."""
        return sum(self.flops.values())

    def _register(self, tensor: torch.Tensor, is_copy: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._parameters:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.live_copies += size * is_copy
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size, is_copy)

    def _release(self, key: int, size: int, is_copy: bool) -> None:
        self._known.discard(key)
        self.live -= size
        self.live_copies -= size * is_copy


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _norms_as_on_gpu(model: torch.nn.Module) -> None:
    """Makes normalisation layers compute in float32 under autocast, as on a GPU: the CPU's leaves them in bfloat16."""

    def in_float32(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(x.float())

    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            module.forward = partial(in_float32, module.forward)


@dataclass(frozen=True)
class StepSettings:
    """What of a training step changes its cost.

    Attributes:
        height: Image height in pixels, a multiple of 64.
        width: Image width in pixels, a multiple of 64.
        batch_size: Samples that one process holds at once.
        bf16: Autocast to bfloat16 over float32 weights; otherwise all is float32.
        gradient_checkpointing: Of the UNet.
        decoded_loss: Decode the estimate for a loss in pixels, one sample after the other, checkpointed, as
            `DecodedLosses.decode` does.
        cached_latents: The autoencoder does not encode in the step.
        accumulated: Gradients of earlier batches are there already.
        tokens: Length of the constant cross-attention input.
    """

    height: int = 384
    width: int = 512
    batch_size: int = 1
    bf16: bool = True
    gradient_checkpointing: bool = False
    decoded_loss: bool = False
    cached_latents: bool = False
    accumulated: bool = False
    tokens: int = 77


@dataclass(frozen=True)
class StepCost:
    """Counts of one step: bytes and FLOPs.

    Attributes:
        encode_flops: Encoding image and depth map.
        forward_flops: The UNet's forward pass.
        backward_flops: Backward pass with all that it recomputes, and the decoder's forward pass if there is one.
        retained: What is kept from the UNet's forward pass for its backward pass, weight copies not counted.
        weight_copies: bfloat16 copies of weights, of the UNet and the encoder, at that time.
        peak: Highest sum of all that operations allocated in the step, the batch, gradients and the above included;
            weights, optimizer state, averaged weights and, when accumulating, older gradients are on top of it.
    """

    encode_flops: int
    forward_flops: int
    backward_flops: int
    retained: int
    weight_copies: int
    peak: int

    @property
    def flops(self) -> int:
        """FLOPs of the whole step."""
        return self.encode_flops + self.forward_flops + self.backward_flops


def count_step(unet_config: dict[str, Any], vae_config: dict[str, Any], settings: StepSettings) -> StepCost:
    """Counts one training step of DepthFM's objective on tensors without content; nothing but shapes is computed.

    Args:
        unet_config: Of a `UNet2DConditionModel` with 8 input and 4 output channels.
        vae_config: Of an `AutoencoderKL`.
        settings: The step.

    Raises:
        ValueError: If a side is not a multiple of 64, or the UNet does not have 8 input and 4 output channels.
    """
    # Before the mode is active: it would be asked about every operation that gives the weights their first values.
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(unet_config), AutoencoderKL.from_config(vae_config)
    with FakeTensorMode():
        for model in (unet, vae):
            _empty_weights(model)
        return run_step(unet, vae, settings)


def _empty_weights(model: torch.nn.Module) -> None:
    """Gives a float32 model weights of the `FakeTensorMode` that is active."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.empty(parameter.shape)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def run_step(unet: UNet2DConditionModel, vae: AutoencoderKL, settings: StepSettings) -> StepCost:
    """Runs forward and backward pass of one step and counts it; changes the models' modes and gradients.

    Raises:
        ValueError: If a side is not a multiple of 64, or the UNet does not have 8 input and 4 output channels.
    """
    if settings.height % 64 or settings.width % 64:
        raise ValueError(f"The sides must be multiples of 64, got {settings.height}x{settings.width}.")
    if (unet.config.in_channels, unet.config.out_channels) != (8, 4):
        raise ValueError(
            f"The UNet must have 8 input and 4 output channels, got {unet.config.in_channels} and "
            f"{unet.config.out_channels}."
        )
    unet.train()
    vae.requires_grad_(False)
    for model in (unet, vae):
        _norms_as_on_gpu(model)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    existing = [*unet.parameters(), *vae.parameters(), *vae.buffers()]
    if settings.accumulated:
        for parameter in unet.parameters():
            parameter.grad = torch.zeros_like(parameter)
            existing.append(parameter.grad)
    batch, height, width = settings.batch_size, settings.height, settings.width
    factor = 2 ** (len(vae.config.block_out_channels) - 1)

    with StepCounter(existing) as counter:
        noise, time = torch.zeros(batch, 4, height // factor, width // factor), torch.zeros(batch)
        embedding = torch.zeros(batch, settings.tokens, unet.config.cross_attention_dim)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            condition = target = torch.zeros_like(noise)
            if not settings.cached_latents:
                image, depth = torch.zeros(batch, 3, height, width), torch.zeros(batch, 3, height, width)
                with torch.no_grad():
                    condition, target = (vae.encode(x).latent_dist.mode().float() for x in (image, depth))
            encode_flops = counter.total_flops
            before = counter.live - counter.live_copies
            sample = torch.cat([condition + noise, condition], dim=1)
            velocity = unet(sample, time, embedding, return_dict=False)[0]
            forward_flops = counter.total_flops - encode_flops
            retained, copies = counter.live - counter.live_copies - before, counter.live_copies
            loss = (velocity.float() - target).square().mean()
            if settings.decoded_loss:
                estimates = (target + velocity.float()).split(1)
                decoded = [checkpoint(vae.decode, z, return_dict=False, use_reentrant=False)[0] for z in estimates]
                loss = loss + torch.cat(decoded).float().square().mean()
                del estimates, decoded
        del sample, velocity
        loss.backward()
    return StepCost(
        encode_flops=encode_flops,
        forward_flops=forward_flops,
        backward_flops=counter.total_flops - encode_flops - forward_flops,
        retained=retained,
        weight_copies=copies,
        peak=counter.peak,
    )


def parameter_bytes(numels: list[int]) -> dict[str, int]:
    """Bytes that a trained model takes from step to step, beside its gradients.

    Args:
        numels: Number of elements of each parameter.

    Returns:
        `weights` and `ema` (float32), `adam` (two float32 moments) and `adam_8bit` (bitsandbytes' block-wise layout).
    """
    total = sum(numels)
    quantised = sum(2 * (n + 4 * -(-n // BLOCK_8BIT)) if n >= MIN_NUMEL_8BIT else 8 * n for n in numels)
    return {"weights": 4 * total, "ema": 4 * total, "adam": 8 * total, "adam_8bit": quantised}
