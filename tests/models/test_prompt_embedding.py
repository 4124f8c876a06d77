"""The constant embedding as a component: saving, devices, hooks."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file

from depthfm_diffusers import PromptEmbedding


def test_holds_a_constant_that_is_not_trained():
    module = PromptEmbedding(num_tokens=5, dim=6)
    assert module().shape == (1, 5, 6)
    assert module.config.num_tokens == 5
    assert module.config.dim == 6
    assert [p.requires_grad for p in module.parameters()] == [False]


@pytest.mark.parametrize("shape", [(4, 3), (1, 4, 3)])
def test_from_tensor_copies_a_known_embedding(shape):
    tensor = torch.randn(shape, dtype=torch.float16)
    module = PromptEmbedding.from_tensor(tensor)
    expected = tensor.reshape(1, 4, 3).clone()
    tensor.zero_()
    assert torch.equal(module(), expected)
    assert module.dtype == torch.float16
    assert (module.config.num_tokens, module.config.dim) == (4, 3)


def test_forward_repeats_without_a_copy():
    module = PromptEmbedding.from_tensor(torch.randn(4, 3))
    batch = module(batch_size=3)
    assert batch.shape == (3, 4, 3)
    assert batch.data_ptr() == module.embedding.data_ptr()
    assert torch.equal(batch[2], module()[0])


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_saved_as_safetensors_and_loaded_identical(variant, tmp_path):
    module = PromptEmbedding.from_tensor(torch.randn(4, 3))
    module.save_pretrained(tmp_path, variant=variant)
    name = f"diffusion_pytorch_model{'.fp16' if variant else ''}.safetensors"
    assert torch.equal(load_file(tmp_path / name)["embedding"], module())
    loaded = PromptEmbedding.from_pretrained(tmp_path, variant=variant, local_files_only=True)
    assert torch.equal(loaded(), module())
    assert not loaded.embedding.requires_grad
    half = PromptEmbedding.from_pretrained(tmp_path, variant=variant, dtype=torch.bfloat16)
    assert half(2).dtype == torch.bfloat16


def test_loads_with_a_device_map(tmp_path):
    module = PromptEmbedding.from_tensor(torch.randn(4, 3))
    module.save_pretrained(tmp_path)
    loaded = PromptEmbedding.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(loaded(2), module(2))


def test_offload_hooks_fire_on_forward():
    module = PromptEmbedding.from_tensor(torch.randn(4, 3))
    expected = module().clone()
    cpu_offload(module, execution_device=torch.device("cpu"))
    # Offloaded, the parameter itself has no values; only a call brings them.
    assert module.embedding.device.type == "meta"
    assert torch.equal(module(2), expected.expand(2, -1, -1))


@pytest.mark.parametrize("arguments", [{"num_tokens": 0}, {"dim": -3}])
def test_refuses_empty_sizes(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be at least 1"):
        PromptEmbedding(**arguments)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3), torch.zeros(2, 4, 3), torch.zeros(1, 1, 4, 3), torch.zeros(4, 3, dtype=torch.long)]
)
def test_from_tensor_refuses_other_shapes_and_kinds(tensor):
    with pytest.raises(ValueError, match="`embedding` must be a floating-point tensor"):
        PromptEmbedding.from_tensor(tensor)
