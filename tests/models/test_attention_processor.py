"""Rescaled self-attention, against attention written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from helpers.components import build_unet
from peft import LoraConfig

from depthfm_diffusers.models.attention_processor import RescaledSelfAttnProcessor, set_self_attention_rescaling


def explicit_attention(attn, queries, context, logit_scale):
    """Attention written out, with the logits' scale given."""
    q, k, v = (
        projection(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for projection, x in ((attn.to_q, queries), (attn.to_k, context), (attn.to_v, context))
    )
    weights = (q @ k.transpose(-1, -2) * logit_scale).softmax(-1)
    return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


@pytest.fixture
def unet():
    return build_unet()


@torch.no_grad()
def predict(unet, size=8):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 8, size, size, generator=generator)
    return unet(sample, torch.tensor(0.3), torch.randn(2, 4, 16, generator=generator)).sample


@pytest.mark.parametrize("num_tokens", [1, 2, 15, 64])
@torch.no_grad()
def test_self_attention_has_the_rescaled_logits(num_tokens):
    torch.manual_seed(0)
    attn = Attention(query_dim=24, heads=3, dim_head=8, processor=RescaledSelfAttnProcessor())
    tokens = 3 * torch.randn(2, num_tokens, 24)
    scale = math.sqrt(math.log(num_tokens) / math.log(4 * num_tokens) / 8)
    torch.testing.assert_close(attn(tokens), explicit_attention(attn, tokens, tokens, scale))


@torch.no_grad()
def test_cross_attention_has_the_usual_logits():
    torch.manual_seed(0)
    attn = Attention(query_dim=24, cross_attention_dim=10, heads=3, dim_head=8, processor=RescaledSelfAttnProcessor())
    tokens, context = 3 * torch.randn(2, 15, 24), 3 * torch.randn(2, 7, 10)
    torch.testing.assert_close(attn(tokens, context), explicit_attention(attn, tokens, context, 8**-0.5))


@torch.no_grad()
def test_masks_are_honoured():
    torch.manual_seed(0)
    attn = Attention(query_dim=24, cross_attention_dim=10, heads=3, dim_head=8, processor=RescaledSelfAttnProcessor())
    tokens, context = torch.randn(2, 15, 24), torch.randn(2, 7, 10)
    mask = torch.zeros(2, 1, 7)
    mask[..., 4:] = -1e4
    torch.testing.assert_close(attn(tokens, context, attention_mask=mask), attn(tokens, context[:, :4]))


def test_switches_self_attention_only_and_back(unet):
    plain = predict(unet)
    set_self_attention_rescaling(unet, True)
    kinds = {name: type(processor) for name, processor in unet.attn_processors.items()}
    assert {kind for name, kind in kinds.items() if "attn1" in name} == {RescaledSelfAttnProcessor}
    assert {kind for name, kind in kinds.items() if "attn2" in name} == {AttnProcessor2_0}
    rescaled = predict(unet)
    assert (rescaled - plain).abs().max() > 1e-3
    set_self_attention_rescaling(unet, True)
    assert torch.equal(predict(unet), rescaled)
    set_self_attention_rescaling(unet, False)
    assert torch.equal(predict(unet), plain)


def test_switching_off_leaves_other_processors_alone(unet):
    class Custom(AttnProcessor2_0):
        pass

    unet.set_attn_processor(Custom())
    set_self_attention_rescaling(unet, False)
    assert {type(processor) for processor in unet.attn_processors.values()} == {Custom}


def test_works_with_lora_on_the_projections(unet):
    set_self_attention_rescaling(unet, True)
    before = predict(unet)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    with_adapter = predict(unet)
    assert (with_adapter - before).abs().max() > 1e-3
    # Switching after the adapter was added gives the same network.
    set_self_attention_rescaling(unet, False)
    assert (predict(unet) - with_adapter).abs().max() > 1e-3
    set_self_attention_rescaling(unet, True)
    assert torch.equal(predict(unet), with_adapter)
    unet.disable_adapters()
    torch.testing.assert_close(predict(unet), before)


def test_gradients_flow(unet):
    set_self_attention_rescaling(unet, True)
    unet(torch.randn(1, 8, 8, 8), torch.tensor(0.3), torch.randn(1, 4, 16)).sample.square().mean().backward()
    name, weight = next((n, p) for n, p in unet.named_parameters() if "attn1.to_q" in n)
    assert weight.grad is not None, name
    assert weight.grad.abs().sum() > 0


def test_scale_follows_the_number_of_tokens_of_the_call(unet, monkeypatch):
    scales = []
    original = F.scaled_dot_product_attention

    def record(*args, **kwargs):
        scales.append((args[0].shape[2], args[1].shape[2], kwargs.get("scale")))
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    set_self_attention_rescaling(unet, True)
    for size in (8, 16):
        predict(unet, size)
    self_attention = {n: scale for n, m, scale in scales if n == m}
    assert {64, 256} <= set(self_attention)
    head_dims = {
        module.to_q.out_features // module.heads for module in unet.modules() if isinstance(module, Attention)
    }
    for n, scale in self_attention.items():
        assert any(scale == pytest.approx(math.sqrt(math.log(n) / math.log(4 * n) / d)) for d in head_dims)
