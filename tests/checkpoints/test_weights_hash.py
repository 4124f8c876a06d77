"""The hash of weights in memory: its values are in reports and in the names of latent caches."""

from __future__ import annotations

import hashlib

import pytest
import torch

from depthfm_diffusers.checkpoints.weights_hash import update_with_weights, weights_sha256


def network(dtype: torch.dtype = torch.float32, value: float = 0.5) -> torch.nn.Module:
    """A layer with known weights, and a counter that is no floating-point number."""
    layer = torch.nn.Linear(3, 2)
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, value)
    layer.register_buffer("count", torch.tensor(7))
    return layer.to(dtype)


def values_hash(module: torch.nn.Module) -> str:
    digest = hashlib.sha256(b"data")
    update_with_weights(digest, module, values_only=True)
    return digest.hexdigest()[:16]


def test_values_are_those_that_0_4_wrote():
    """Worked out with the code of 0.4.0: of the adherence report, and of the latent cache."""
    assert weights_sha256(network()) == "bd5f7ec44f77649a2dd73fd1f7fdb1981f77030c7222184cc2aa4e20eb3cd4f5"
    assert values_hash(network()) == "e97ea5fee5345f49"


@pytest.mark.parametrize("changed", [network(value=0.25), torch.nn.Linear(3, 2)])
def test_other_weights_have_another_hash(changed):
    assert weights_sha256(changed) != weights_sha256(network())
    assert values_hash(changed) != values_hash(network())


def test_dtype_counts_unless_only_values_do():
    half = network(torch.bfloat16)
    assert weights_sha256(half) != weights_sha256(network())
    assert values_hash(half) == values_hash(network())
