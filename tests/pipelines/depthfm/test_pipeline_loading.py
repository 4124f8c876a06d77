"""Saving, loading, devices and adapters: diffusers' own machinery must work on the pipeline as on its own."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from helpers.components import build_components, build_unet
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from depthfm_diffusers import DepthFMPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


def predict(pipe, image) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(image, generator=torch.Generator().manual_seed(0), ensemble_size=2).log_depth


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("loader", [DiffusionPipeline, DepthFMPipeline])
def test_a_saved_pipeline_is_the_same_to_the_bit(pipe, folder, image, loader):
    loaded = loader.from_pretrained(folder)
    assert type(loaded) is DepthFMPipeline
    assert loaded.scheduler.config.noise_augmentation_step == pipe.scheduler.config.noise_augmentation_step == 400
    assert loaded.default_processing_resolution == 64
    assert np.array_equal(predict(loaded, image), predict(pipe, image))


def test_the_saved_index_names_diffusers_and_every_parameter(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "DepthFMPipeline"
    assert index["prompt_embedding"] == ["diffusers", "PromptEmbedding"]
    assert index["scheduler"] == ["diffusers", "FlowMatchingImageToDepthScheduler"]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert (index["default_num_inference_steps"], index["default_processing_resolution"]) == (2, 64)
    assert index["rescale_self_attention"] is False
    assert not list(folder.rglob("*.bin"))


def test_saving_again_loses_nothing(folder, image, tmp_path):
    loaded = DiffusionPipeline.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "again")
    first, second = (json.loads((path / "model_index.json").read_text()) for path in (folder, tmp_path / "again"))
    assert second.pop("_name_or_path") == str(folder)
    assert second == first
    assert np.array_equal(
        predict(DiffusionPipeline.from_pretrained(tmp_path / "again"), image), predict(loaded, image)
    )


def test_local_files_only_opens_no_socket(folder, image, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    pipe = DepthFMPipeline.from_pretrained(folder, local_files_only=True)
    assert np.isfinite(predict(pipe, image)).all()


def test_variants_and_dtypes(pipe, folder, image):
    pipe.to(torch.float16).save_pretrained(folder, variant="fp16")
    half = DepthFMPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float16)
    assert {module.dtype for module in (half.unet, half.vae, half.prompt_embedding)} == {torch.float16}
    full = DepthFMPipeline.from_pretrained(folder)
    assert full.unet.dtype == torch.float32
    mixed = DepthFMPipeline.from_pretrained(folder, dtype={"vae": torch.float32, "default": torch.bfloat16})
    assert (mixed.vae.dtype, mixed.unet.dtype) == (torch.float32, torch.bfloat16)
    assert abs(predict(mixed, image) - predict(full, image)).max() < 0.05 * np.ptp(predict(full, image))


def test_the_older_name_of_dtype_still_works(folder):
    with pytest.warns(FutureWarning, match="torch_dtype"):
        assert DepthFMPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).unet.dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["balanced", "cpu"])
def test_device_maps(pipe, folder, image, device_map):
    loaded = DiffusionPipeline.from_pretrained(folder, device_map=device_map)
    np.testing.assert_allclose(predict(loaded, image), predict(pipe, image), atol=1e-6)


def test_single_components_may_be_passed_in(folder):
    unet = build_unet(seed=5)
    pipe = DepthFMPipeline.from_pretrained(folder, unet=unet)
    assert pipe.unet is unet
    assert pipe.components.keys() == {"unet", "vae", "scheduler", "prompt_embedding"}
    assert pipe.image_encoder is None


def test_parameters_can_be_changed_at_load_and_are_saved(folder, image, tmp_path):
    plain = predict(DepthFMPipeline.from_pretrained(folder), image)
    pipe = DiffusionPipeline.from_pretrained(folder, rescale_self_attention=True, default_num_inference_steps=1)
    rescaled = predict(pipe, image)
    assert abs(rescaled - plain).max() > 1e-4
    pipe.save_pretrained(tmp_path / "rescaled")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "rescaled")
    assert loaded.config.rescale_self_attention is True
    assert np.array_equal(predict(loaded, image), rescaled)
    back = DepthFMPipeline.from_pretrained(
        tmp_path / "rescaled", rescale_self_attention=False, default_num_inference_steps=2
    )
    assert np.array_equal(predict(back, image), plain)


@pytest.mark.parametrize(
    "missing",
    ["model_index.json", "vae/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json", f"vae/{WEIGHTS}"],
)
def test_missing_files_are_named(folder, missing):
    (folder / missing).unlink()
    name = missing.removesuffix(".safetensors").split("/")[-1]
    with pytest.raises(OSError, match=rf"no file named {name}\S* found in directory {(folder / missing).parent}"):
        DepthFMPipeline.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("corrupt", ["model_index.json", "vae/config.json", f"unet/{WEIGHTS}"])
def test_corrupt_files_are_named(folder, corrupt):
    (folder / corrupt).write_bytes((folder / corrupt).read_bytes()[:100])
    with pytest.raises(OSError, match=str(folder / corrupt)):
        DepthFMPipeline.from_pretrained(folder, local_files_only=True)


def test_model_offload_and_group_offload_run_through_their_hooks(image):
    """With the CPU standing in for the accelerator: the hooks' paths are the same."""
    expected = predict(DepthFMPipeline(**build_components(), default_processing_resolution=64), image)
    pipe = DepthFMPipeline(**build_components(), default_processing_resolution=64)
    pipe.enable_model_cpu_offload(device="cpu")
    assert all(hasattr(module, "_hf_hook") for module in (pipe.unet, pipe.vae, pipe.prompt_embedding))
    np.testing.assert_allclose(predict(pipe, image), expected, atol=1e-6)
    pipe = DepthFMPipeline(**build_components(), default_processing_resolution=64)
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    np.testing.assert_allclose(predict(pipe, image), expected, atol=1e-6)


@pytest.fixture
def adapter(tmp_path):
    """A folder with LoRA weights for the UNet's attention, and the UNet that has them."""
    unet = build_unet()
    torch.manual_seed(2)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    DepthFMPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    return tmp_path / "lora", unet


@pytest.mark.parametrize("rescale", [False, True])
def test_lora_weights_load_fuse_and_unload(image, adapter, rescale, caplog):
    path, adapted_unet = adapter
    parameters = {"default_processing_resolution": 64, "rescale_self_attention": rescale}
    expected = predict(DepthFMPipeline(**{**build_components(), "unet": adapted_unet}, **parameters), image)
    pipe = DepthFMPipeline(**build_components(), **parameters)
    without = predict(pipe, image)

    pipe.load_lora_weights(path)
    assert abs(predict(pipe, image) - without).max() > 1e-3
    np.testing.assert_allclose(predict(pipe, image), expected, atol=1e-5)
    pipe.fuse_lora()
    np.testing.assert_allclose(predict(pipe, image), expected, atol=1e-4)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    np.testing.assert_allclose(predict(pipe, image), without, atol=1e-4)
    assert "text_encoder" not in caplog.text


def kohya_names(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that kohya-ss's scripts give: underscores for dots, `down` and `up` for A and B."""
    renamed = {}
    for key, tensor in state_dict.items():
        module, letter, _ = key.rsplit(".", 2)
        module = module.removeprefix("unet.").removesuffix(".lora").replace(".", "_")
        renamed[f"lora_unet_{module}.lora_{'down' if letter in ('lora_A', 'down') else 'up'}.weight"] = tensor
    return renamed


@pytest.mark.parametrize("names", ["diffusers", "kohya"])
def test_the_text_encoders_part_of_lora_weights_is_left_out(image, adapter, names, caplog):
    """The rest is loaded as if it were alone, and the number of weights that are left out is said."""
    path, _ = adapter
    state_dict = DepthFMPipeline.lora_state_dict(path)[0]
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    others = {f"text_encoder.{layer}.lora_A.weight": torch.ones(2, 4), f"text_encoder.{layer}.lora_B.weight": None}
    if names == "kohya":
        state_dict = kohya_names(state_dict)
        prefix = f"lora_te_{layer.replace('.', '_')}"
        others = {f"{prefix}.lora_down.weight": torch.ones(2, 4), f"{prefix}.lora_up.weight": None}
    others = {key: torch.ones(4, 2) if tensor is None else tensor for key, tensor in others.items()}

    def loaded(weights) -> np.ndarray:
        pipe = DepthFMPipeline(**build_components(), default_processing_resolution=64)
        pipe.load_lora_weights(weights)
        assert pipe.get_active_adapters() == ["default_0"]
        return predict(pipe, image)

    expected = loaded(dict(state_dict))
    assert "left out" not in caplog.text
    assert np.array_equal(loaded({**state_dict, **others}), expected)
    assert f"2 of {len(state_dict) + 2} LoRA weights are left out" in caplog.text
    assert "text encoder, which DepthFMPipeline does not have" in caplog.text

    pipe = DepthFMPipeline(**build_components(), default_processing_resolution=64)
    without = predict(pipe, image)
    with pytest.raises(ValueError, match=r"text encoder, which DepthFMPipeline does not have.*'unet\.'.*'lora_unet_'"):
        pipe.load_lora_weights(dict(others))
    assert pipe.get_active_adapters() == []
    assert np.array_equal(predict(pipe, image), without)


def test_lora_weights_that_do_not_fit_leave_no_adapter(pipe, adapter, image):
    without = predict(pipe, image)
    state_dict = DepthFMPipeline.lora_state_dict(adapter[0])[0]
    key = next(key for key in state_dict if "down" in key or "lora_A" in key)
    with pytest.raises(Exception, match="size mismatch"):
        pipe.load_lora_weights({**state_dict, key: torch.ones(2, 7)})
    assert pipe.get_active_adapters() == []
    assert np.array_equal(predict(pipe, image), without)
