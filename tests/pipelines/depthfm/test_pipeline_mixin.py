"""The contracts that diffusers tests of every pipeline, on this one.

diffusers' own mixin is not installed with it; what it checks of the call's signature, batching, outputs, components
and dtypes is checked here, in our own words. Saving and loading are in test_pipeline_loading.py.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from helpers.components import build_components

from depthfm_diffusers import DepthFMOutput, DepthFMPipeline


@pytest.fixture
def arguments() -> dict[str, object]:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"image": image, "num_inference_steps": 1, "processing_resolution": 0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_signature():
    """All parameters but the image have defaults; names and order are those of the design."""
    parameters = inspect.signature(DepthFMPipeline.__call__).parameters
    assert list(parameters)[1:18] == [
        "image",
        "num_inference_steps",
        "ensemble_size",
        "processing_resolution",
        "match_input_resolution",
        "resample_method_input",
        "resample_method_output",
        "batch_size",
        "latents",
        "generator",
        "output_type",
        "output_uncertainty",
        "output_normals",
        "output_latent",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "return_dict",
    ]
    assert [name for name, p in parameters.items() if p.default is p.empty] == ["self", "image"]


def test_every_parameter_of_the_call_is_documented():
    documentation = inspect.getdoc(DepthFMPipeline.__call__)
    for name in list(inspect.signature(DepthFMPipeline.__call__).parameters)[1:]:
        assert f"\n    {name}: " in documentation, name


def test_base_classes():
    assert issubclass(DepthFMPipeline, DiffusionPipeline)
    assert issubclass(DepthFMPipeline, StableDiffusionLoraLoaderMixin)
    assert DepthFMPipeline._lora_loadable_modules == ["unet"]
    assert DepthFMPipeline.text_encoder is None


def test_components_make_another_pipeline_without_copies():
    components = build_components()
    pipe = DepthFMPipeline(**components)
    assert pipe.components == components
    assert DepthFMPipeline(**pipe.components).unet is pipe.unet
    assert DepthFMPipeline.from_pipe(pipe).unet is pipe.unet


def test_a_batch_is_as_long_as_its_images(pipe, arguments):
    batch = {**arguments, "image": [arguments["image"]] * 2, "generator": [seeded(0), seeded(1)]}
    assert len(pipe(**batch)[0]) == 2


def test_the_first_of_a_batch_is_the_single_result(pipe, arguments):
    single = pipe(**arguments, generator=seeded(0))[0]
    images = [arguments["image"]] * 3
    batch = pipe(**{**arguments, "image": images}, generator=[seeded(i) for i in range(3)], batch_size=3)[0]
    assert abs(batch[0] - single[0]).max() < 1e-5
    assert abs(batch[1] - batch[0]).max() > 1e-3, "members of other seeds differ"


def test_dict_and_tuple(pipe, arguments):
    output = pipe(**arguments, generator=seeded())
    assert isinstance(output, DepthFMOutput)
    as_tuple = pipe(**arguments, generator=seeded(), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert np.array_equal(as_tuple[0], output[0])
    assert list(output) == ["prediction", "log_depth"], "fields that were not asked for are left out"


def test_to_dtype_moves_every_component(pipe):
    pipe.to(dtype=torch.bfloat16)
    assert {pipe.components[name].dtype for name in ("unet", "vae", "prompt_embedding")} == {torch.bfloat16}


def test_layerwise_casting(pipe, arguments):
    pipe.to(dtype=torch.bfloat16)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert np.isfinite(pipe(**arguments)[0]).all()


def test_attention_slicing_changes_nothing(pipe, arguments):
    whole = pipe(**arguments, generator=seeded())[0]
    for slice_size in (1, 2):
        pipe.enable_attention_slicing(slice_size)
        assert abs(pipe(**arguments, generator=seeded())[0] - whole).max() < 1e-4


def test_declared_callback_tensors_are_all_available(pipe, arguments):
    given = []
    pipe(
        **arguments,
        callback_on_step_end=lambda _, i, t, tensors: given.append(set(tensors)) or tensors,
        callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs,
    )
    assert given == [set(pipe._callback_tensor_inputs)]


def test_no_gradients_are_kept(pipe, arguments):
    arguments["image"].requires_grad_()
    assert not pipe(**arguments, output_type="pt").prediction.requires_grad
