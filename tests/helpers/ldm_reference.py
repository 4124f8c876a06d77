"""The authors' UNet as plain functions on a dict of weights: an oracle for the conversion, independent of diffusers.

Weights come into being, with random values, when the network asks for them the first time: one evaluation makes the
state dict that the authors' code would save for these hyperparameters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


class LdmReference:
    """Random network of given hyperparameters; `state_dict` is complete after the first call."""

    def __init__(self, hparams: dict, seed: int = 0) -> None:
        self.hparams = {
            "channel_mult": (1, 2, 4, 8),
            "num_heads": -1,
            "num_head_channels": -1,
            "legacy": True,
            **hparams,
        }
        self.state_dict: dict[str, torch.Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)
        levels = len(self.hparams["channel_mult"])
        blocks = self.hparams["num_res_blocks"]
        self.num_res_blocks = [blocks] * levels if isinstance(blocks, int) else list(blocks)
        depth = self.hparams.get("transformer_depth", 1)
        self.depths = [depth] * levels if isinstance(depth, int) else list(depth)
        context_dim = self.hparams["context_dim"]
        self.context_dim = context_dim if isinstance(context_dim, int) else context_dim[0]

    def _weight(self, name: str, *shape: int) -> torch.Tensor:
        if name not in self.state_dict:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
            values = torch.randn(shape, generator=self.generator) / math.sqrt(fan_in)
            is_norm_scale = len(shape) == 1 and name.endswith("weight")
            self.state_dict[name] = 1 + 0.2 * values if is_norm_scale else values
        assert self.state_dict[name].shape == shape, name
        return self.state_dict[name]

    def _linear(self, name: str, x: torch.Tensor, out: int, bias: bool = True) -> torch.Tensor:
        return F.linear(
            x, self._weight(f"{name}.weight", out, x.shape[-1]), self._weight(f"{name}.bias", out) if bias else None
        )

    def _conv(self, name: str, x: torch.Tensor, out: int, size: int = 3, stride: int = 1) -> torch.Tensor:
        weight, bias = self._weight(f"{name}.weight", out, x.shape[1], size, size), self._weight(f"{name}.bias", out)
        return F.conv2d(x, weight, bias, stride=stride, padding=size // 2)

    def _group_norm(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        weight, bias = self._weight(f"{name}.weight", x.shape[1]), self._weight(f"{name}.bias", x.shape[1])
        return F.group_norm(x, 32, weight, bias, eps)

    def _layer_norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self._weight(f"{name}.weight", width), self._weight(f"{name}.bias", width))

    def _res_block(self, name: str, x: torch.Tensor, emb: torch.Tensor, out: int, resample: str = "") -> torch.Tensor:
        h = F.silu(self._group_norm(f"{name}.in_layers.0", x, 1e-5))
        if resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif resample == "up":
            h, x = (F.interpolate(value, scale_factor=2, mode="nearest") for value in (h, x))
        h = self._conv(f"{name}.in_layers.2", h, out)
        film = self.hparams.get("use_scale_shift_norm", False)
        emb = self._linear(f"{name}.emb_layers.1", F.silu(emb), 2 * out if film else out)[..., None, None]
        if film:
            scale, shift = emb.chunk(2, dim=1)
            h = self._group_norm(f"{name}.out_layers.0", h, 1e-5) * (1 + scale) + shift
        else:
            h = self._group_norm(f"{name}.out_layers.0", h + emb, 1e-5)
        h = self._conv(f"{name}.out_layers.3", F.silu(h), out)
        return h + (x if x.shape[1] == out else self._conv(f"{name}.skip_connection", x, out, size=1))

    def _attention(self, name: str, x: torch.Tensor, context: torch.Tensor, heads: int, dim: int) -> torch.Tensor:
        q, k, v = (
            self._linear(f"{name}.to_{letter}", tokens, heads * dim, bias=False).unflatten(-1, (heads, dim))
            for letter, tokens in (("q", x), ("k", context), ("v", context))
        )
        logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(dim)
        out = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), v).flatten(2)
        return self._linear(f"{name}.to_out.0", out, x.shape[-1])

    def _transformer(
        self, name: str, x: torch.Tensor, context: torch.Tensor, level: int, middle: bool
    ) -> torch.Tensor:
        channels, (height, width) = x.shape[1], x.shape[2:]
        if self.hparams["num_head_channels"] == -1:
            heads = self.hparams["num_heads"]
            dim = channels // heads
        else:
            heads, dim = channels // self.hparams["num_head_channels"], self.hparams["num_head_channels"]
        if self.hparams["legacy"]:
            dim = channels // heads
        disabled = self.hparams.get("disable_self_attentions")
        only_cross = bool(disabled) and not middle and disabled[level]

        h = self._group_norm(f"{name}.norm", x, 1e-6)
        linear = self.hparams.get("use_linear_in_transformer", False)
        if not linear:
            h = self._conv(f"{name}.proj_in", h, heads * dim, size=1)
        h = h.flatten(2).transpose(1, 2)
        if linear:
            h = self._linear(f"{name}.proj_in", h, heads * dim)
        for layer in range(self.depths[level]):
            block = f"{name}.transformer_blocks.{layer}"
            normed = self._layer_norm(f"{block}.norm1", h)
            h = h + self._attention(f"{block}.attn1", normed, context if only_cross else normed, heads, dim)
            h = h + self._attention(f"{block}.attn2", self._layer_norm(f"{block}.norm2", h), context, heads, dim)
            inner = 4 * heads * dim
            value, gate = self._linear(
                f"{block}.ff.net.0.proj", self._layer_norm(f"{block}.norm3", h), 2 * inner
            ).chunk(2, dim=-1)
            h = h + self._linear(f"{block}.ff.net.2", value * F.gelu(gate), heads * dim)
        if linear:
            h = self._linear(f"{name}.proj_out", h, heads * dim)
        h = h.transpose(1, 2).unflatten(2, (height, width))
        return x + (h if linear else self._conv(f"{name}.proj_out", h, channels, size=1))

    def __call__(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Velocity at `x` (`B x C x H x W`, the condition's channels included), time `t` (`B`)."""
        base, multipliers = self.hparams["model_channels"], self.hparams["channel_mult"]
        blocks_updown = self.hparams.get("resblock_updown", False)
        frequencies = torch.exp(-math.log(10000) * torch.arange(base // 2) / (base // 2))
        angles = t[:, None] * frequencies
        emb = self._linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=-1), 4 * base)
        emb = self._linear("time_embed.2", F.silu(emb), 4 * base)

        h = self._conv("input_blocks.0.0", x, base)
        skips, number = [h], 1
        for level, multiplier in enumerate(multipliers):
            for _ in range(self.num_res_blocks[level]):
                h = self._res_block(f"input_blocks.{number}.0", h, emb, int(base * multiplier))
                if 2**level in self.hparams["attention_resolutions"]:
                    h = self._transformer(f"input_blocks.{number}.1", h, context, level, middle=False)
                skips.append(h)
                number += 1
            if level < len(multipliers) - 1:
                if blocks_updown:
                    h = self._res_block(f"input_blocks.{number}.0", h, emb, h.shape[1], resample="down")
                else:
                    h = self._conv(f"input_blocks.{number}.0.op", h, h.shape[1], stride=2)
                skips.append(h)
                number += 1

        h = self._res_block("middle_block.0", h, emb, h.shape[1])
        h = self._transformer("middle_block.1", h, context, len(multipliers) - 1, middle=True)
        h = self._res_block("middle_block.2", h, emb, h.shape[1])

        number = 0
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(self.num_res_blocks[level] + 1):
                h = self._res_block(
                    f"output_blocks.{number}.0", torch.cat([h, skips.pop()], dim=1), emb, int(base * multiplier)
                )
                position = 1
                if 2**level in self.hparams["attention_resolutions"]:
                    h = self._transformer(f"output_blocks.{number}.1", h, context, level, middle=False)
                    position = 2
                if level and block == self.num_res_blocks[level]:
                    name = f"output_blocks.{number}.{position}"
                    if blocks_updown:
                        h = self._res_block(name, h, emb, h.shape[1], resample="up")
                    else:
                        h = self._conv(f"{name}.conv", F.interpolate(h, scale_factor=2, mode="nearest"), h.shape[1])
                number += 1
        return self._conv("out.2", F.silu(self._group_norm("out.0", h, 1e-5)), self.hparams["out_channels"])
