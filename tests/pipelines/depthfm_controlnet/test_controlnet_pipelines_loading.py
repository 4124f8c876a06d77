"""Saving, loading, devices and adapters of the ControlNet pipelines: one folder, and diffusers' own machinery."""

from __future__ import annotations

import json
from pathlib import Path

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from helpers.components import build_components, build_image_encoder, build_unet, build_vae
from helpers.controlnet_parts import (
    PIPELINES,
    STEPS,
    build_controlnet,
    build_depth_estimator,
    build_image,
    build_pipelines,
    build_stable_diffusion_pipeline,
    diffusers_arguments,
    seeded,
    start_arguments,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from depthfm_diffusers import (
    DepthFMControlNetImg2ImgPipeline,
    DepthFMControlNetInpaintPipeline,
    DepthFMControlNetPipeline,
    DepthFMPipeline,
    FlowMatchingImageToDepthScheduler,
)
from depthfm_diffusers.pipelines.depthfm_controlnet.controlnet_noise import depth_generator

each_pipeline = pytest.mark.parametrize("cls", PIPELINES)
DEPTH = ("depth_unet", "depth_vae", "depth_scheduler", "depth_prompt_embedding")
MODULES = ("vae", "text_encoder", "unet", "controlnet", "depth_unet", "depth_vae", "depth_prompt_embedding")


def generate(pipe: DiffusionPipeline, **arguments: object) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a", **start_arguments(type(pipe)), **{**STEPS, **arguments}, generator=seeded()).images


def dtypes(pipe: DiffusionPipeline) -> dict[str, torch.dtype]:
    return {name: pipe.components[name].dtype for name in MODULES}


@each_pipeline
def test_one_folder_holds_everything(cls, tmp_path):
    pipe, _ = build_pipelines(cls, "2.1")
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == cls.__name__
    assert index["depth_scheduler"] == ["diffusers", "FlowMatchingImageToDepthScheduler"]
    assert index["depth_prompt_embedding"] == ["diffusers", "PromptEmbedding"]
    assert index["depth_unet"] == index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert (index["default_depth_num_inference_steps"], index["default_depth_processing_resolution"]) == (1, 48)
    assert {path.name for path in tmp_path.iterdir()} == {"model_index.json", *MODULES, "tokenizer", "scheduler"} | {
        "depth_scheduler"
    }
    expected = generate(pipe)
    for loader, options in ((DiffusionPipeline, {}), (DiffusionPipeline, {"trust_remote_code": True}), (cls, {})):
        loaded = loader.from_pretrained(tmp_path, local_files_only=True, **options)
        assert type(loaded) is cls
        assert isinstance(loaded.depth_scheduler, FlowMatchingImageToDepthScheduler)
        assert np.array_equal(generate(loaded), expected)


def test_saving_again_and_exchanged_components(tmp_path):
    pipe, _ = build_pipelines()
    pipe.save_pretrained(tmp_path / "first")
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path / "first", depth_scheduler=FlowMatchingImageToDepthScheduler(solver_type="heun")
    )
    loaded.scheduler = EulerDiscreteScheduler.from_config(loaded.scheduler.config)
    loaded.save_pretrained(tmp_path / "second")
    again = DiffusionPipeline.from_pretrained(tmp_path / "second")
    assert again.depth_scheduler.config.solver_type == "heun"
    assert isinstance(again.scheduler, EulerDiscreteScheduler)
    assert np.array_equal(generate(again), generate(loaded))


def test_several_controlnets_are_saved_and_loaded(tmp_path):
    pipe, _ = build_pipelines(controlnets=2)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert len(loaded.controlnets) == 2
    assert np.array_equal(generate(loaded), generate(pipe))


def test_variants_and_dtypes_reach_every_component(tmp_path):
    pipe, _ = build_pipelines()
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    half = DepthFMControlNetPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert set(dtypes(half).values()) == {torch.float16}
    mixed = DepthFMControlNetPipeline.from_pretrained(
        tmp_path, variant="fp16", dtype={"depth_vae": torch.float32, "default": torch.bfloat16}
    )
    assert dtypes(mixed) == {name: torch.float32 if name == "depth_vae" else torch.bfloat16 for name in MODULES}
    assert np.isfinite(generate(mixed)).all()


@each_pipeline
def test_devices_reach_every_component(cls):
    pipe, _ = build_pipelines(cls)
    pipe.to("meta")
    devices = {name: {p.device.type for p in pipe.components[name].parameters()} for name in MODULES}
    assert devices == {name: {"meta"} for name in MODULES}


@each_pipeline
def test_generates_in_half_precision(cls):
    pipe, _ = build_pipelines(cls)
    expected = generate(pipe)
    assert set(dtypes(pipe.to(torch.bfloat16)).values()) == {torch.bfloat16}
    assert abs(generate(pipe) - expected).mean() < 0.1


def test_two_pipelines_become_one_without_copies():
    stable, estimator = build_stable_diffusion_pipeline(), build_depth_estimator()
    controlnet = build_controlnet(stable.unet)
    estimator.register_to_config(rescale_self_attention=True)
    pipe = DepthFMControlNetPipeline.from_pipelines(stable, estimator, controlnet=controlnet)
    assert all(pipe.components[name] is stable.components[name] for name in ("vae", "unet", "tokenizer", "scheduler"))
    assert pipe.controlnet is controlnet
    assert all(pipe.components[f"depth_{name}"] is module for name, module in estimator.components.items())
    assert pipe.config.default_depth_num_inference_steps == 1
    assert pipe.config.default_depth_processing_resolution == 48
    assert pipe.config.rescale_depth_self_attention is True
    assert pipe.config.requires_safety_checker == stable.config.requires_safety_checker

    assert type(pipe.depth_estimator) is DepthFMPipeline
    assert pipe.depth_estimator.components == estimator.components
    assert pipe.depth_estimator.default_processing_resolution == 48
    other = DepthFMControlNetPipeline.from_pipelines(pipe, estimator)
    assert other.controlnet is controlnet, "a pipeline with ControlNet needs no other"


def test_from_one_class_to_another_as_in_diffusers():
    pipe, _ = build_pipelines()
    for cls in (DepthFMControlNetImg2ImgPipeline, DepthFMControlNetInpaintPipeline):
        other = cls.from_pipe(pipe)
        assert all(other.components[name] is pipe.components[name] for name in (*MODULES, *DEPTH))
        assert other.config.default_depth_processing_resolution == 48
        assert np.isfinite(generate(other)).all()
    plain = StableDiffusionPipeline.from_pipe(pipe)
    assert plain.unet is pipe.unet


def test_text_can_be_encoded_by_one_pipeline_and_used_by_another():
    """A pipeline of the text encoder alone, and one of all the rest."""
    pipe, _ = build_pipelines()
    text = {
        name: module if name in ("text_encoder", "tokenizer") else None for name, module in pipe.components.items()
    }
    rest = {
        name: None if name in ("text_encoder", "tokenizer") else module for name, module in pipe.components.items()
    }
    encoder = DepthFMControlNetPipeline(**text, requires_safety_checker=False)
    embeddings, negative = encoder.encode_prompt("a", "cpu", 1, True)
    defaults = {"default_depth_num_inference_steps": 1, "default_depth_processing_resolution": 48}
    generator = DepthFMControlNetPipeline(**rest, **defaults, requires_safety_checker=False)
    generator.set_progress_bar_config(disable=True)
    images = generator(
        image=build_image(), prompt_embeds=embeddings, negative_prompt_embeds=negative, **STEPS, generator=seeded()
    ).images
    assert np.array_equal(images, generate(pipe))
    with pytest.raises(ValueError, match="The pipeline has no vae"):
        encoder("a", build_image())


def test_classes_are_registered():
    for cls in PIPELINES:
        assert getattr(diffusers, cls.__name__) is cls


@each_pipeline
def test_offloading_runs_through_its_hooks(cls):
    """With the CPU standing in for the accelerator: the hooks' paths are the same."""
    pipe, _ = build_pipelines(cls)
    expected = generate(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert all(hasattr(pipe.components[name], "_hf_hook") for name in MODULES)
    for _ in range(2):
        np.testing.assert_allclose(generate(pipe), expected, atol=1e-6)
    pipe, _ = build_pipelines(cls)
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    np.testing.assert_allclose(generate(pipe), expected, atol=1e-6)


@each_pipeline
def test_every_layer_can_be_offloaded(cls):
    """What `enable_sequential_cpu_offload` does to each network, which needs an accelerator to be called itself."""
    pipe, _ = build_pipelines(cls)
    expected = generate(pipe)
    for name in MODULES:
        module = pipe.components[name]
        accelerate.cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)
        assert {p.device.type for p in module.parameters()} == {"meta"}
    np.testing.assert_allclose(generate(pipe), expected, atol=1e-6)


def test_a_shared_autoencoder_is_offloaded_once():
    pipe, _ = build_pipelines()
    pipe.depth_vae = pipe.vae
    index = dict(pipe.config)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert all(hasattr(pipe.components[name], "_hf_hook") for name in MODULES)
    assert pipe.depth_vae is pipe.vae
    assert pipe.config == index


def test_depth_networks_are_offloaded_before_the_image_is_made(monkeypatch):
    pipe, _ = build_pipelines()
    pipe.enable_model_cpu_offload(device="cpu")
    order = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: order.append("freed"))
    pipe.depth_unet.register_forward_pre_hook(lambda *_: order.append("depth_unet"))
    pipe.text_encoder.register_forward_pre_hook(lambda *_: order.append("text_encoder"))
    pipe("a", build_image(), num_inference_steps=1, guidance_scale=1.0)
    assert order == ["depth_unet", "freed", "text_encoder", "freed"]


def test_one_autoencoder_for_both_parts(tmp_path):
    """The autoencoder of Stable Diffusion is DepthFM's, too: memory is needed once."""
    stable, estimator = build_stable_diffusion_pipeline(), build_depth_estimator()
    estimator.vae = stable.vae
    pipe = DepthFMControlNetPipeline.from_pipelines(stable, estimator, controlnet=build_controlnet(stable.unet))
    assert pipe.depth_vae is pipe.vae
    expected = generate(pipe)
    pipe.save_pretrained(tmp_path)
    assert np.array_equal(generate(DiffusionPipeline.from_pretrained(tmp_path)), expected)
    pipe.enable_model_cpu_offload(device="cpu")
    np.testing.assert_allclose(generate(pipe), expected, atol=1e-6)


@each_pipeline
def test_lora_of_stable_diffusion_and_of_the_depth_estimator(cls, tmp_path):
    pipe, _ = build_pipelines(cls)
    without = generate(pipe)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    for name, saver in (("unet", cls), ("depth_unet", DepthFMPipeline)):
        torch.manual_seed(2)
        adapted = build_pipelines(cls)[0].components[name]
        adapted.add_adapter(config)
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(adapted))
        saver.save_lora_weights(tmp_path / name, unet_lora_layers=layers)

    pipe.load_lora_weights(tmp_path / "unet")
    adapted = generate(pipe)
    assert abs(adapted - without).max() > 1e-3
    assert np.array_equal(generate(pipe, cross_attention_kwargs={"scale": 0.0}), without)
    pipe.fuse_lora()
    np.testing.assert_allclose(generate(pipe), adapted, atol=1e-3)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    np.testing.assert_allclose(generate(pipe), without, atol=1e-3)

    before = pipe.depth_estimator(build_image(), generator=seeded()).log_depth
    pipe.depth_estimator.load_lora_weights(tmp_path / "depth_unet")
    output = pipe("a", **start_arguments(cls), **STEPS, generator=seeded())
    assert abs(output.log_depth - before).max() > 1e-3


def test_textual_inversion(tmp_path):
    pipe, _ = build_pipelines()
    before = pipe("a <new>", build_image(), **STEPS, generator=seeded()).images
    pipe.load_textual_inversion({"<new>": torch.ones(24)})
    assert abs(pipe("a <new>", build_image(), **STEPS, generator=seeded()).images - before).max() > 1e-3


def write_ip_adapter(folder: Path, unet: torch.nn.Module, image_width: int = 16, tokens: int = 4) -> None:
    """Random weights of an IP-Adapter for `unet` and its image encoder, in the layout in which they are published."""
    width = unet.config.cross_attention_dim
    torch.manual_seed(4)
    tensors = {
        "image_proj.proj.weight": torch.randn(tokens * width, image_width),
        "image_proj.proj.bias": torch.zeros(tokens * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    attentions = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(attentions):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for projection in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * i + 1}.{projection}.weight"] = torch.randn(hidden, width)
    folder.mkdir()
    save_file(tensors, folder / "ip-adapter.safetensors")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, projection_dim=image_width, image_size=32, patch_size=16)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")


@each_pipeline
def test_ip_adapter(cls, tmp_path):
    pipe, counterpart = build_pipelines(cls)
    without = generate(pipe)
    write_ip_adapter(tmp_path / "models", pipe.unet)
    pipe.load_ip_adapter(tmp_path, subfolder="models", weight_name="ip-adapter.safetensors")
    pipe.set_ip_adapter_scale(1.0)
    with pytest.raises(ValueError, match="An IP-Adapter is loaded, so `ip_adapter_image` or"):
        generate(pipe)

    given = {"prompt": "a", **STEPS, "ip_adapter_image": build_image(8)}
    output = pipe(**start_arguments(cls), **given, generator=seeded())
    assert abs(output.images - without).max() > 1e-3
    counterpart.register_modules(image_encoder=pipe.image_encoder, feature_extractor=pipe.feature_extractor)
    arguments = {**diffusers_arguments(cls, output.control_image[0]), **given}
    assert np.array_equal(output.images, counterpart(**arguments, generator=seeded()).images)

    embeddings = pipe.prepare_ip_adapter_image_embeds(build_image(8), None, torch.device("cpu"), 1, True)
    assert np.array_equal(generate(pipe, ip_adapter_image_embeds=embeddings), output.images)
    encoder, pipe.image_encoder = pipe.image_encoder, None
    with pytest.raises(ValueError, match="The pipeline has no image_encoder for `ip_adapter_image`"):
        generate(pipe, ip_adapter_image=build_image(8))
    pipe.image_encoder = encoder
    pipe.unload_ip_adapter()
    assert np.array_equal(generate(pipe), without)


def test_the_image_encoder_of_the_depth_estimator(tmp_path):
    """It is flat as the other components, and another than that of an IP-Adapter."""
    components = build_components() | {"unet": build_unet(in_channels=13), "image_encoder": build_image_encoder()}
    estimator = DepthFMPipeline(**components, default_num_inference_steps=1, default_processing_resolution=48)
    pipe = DepthFMControlNetPipeline.from_pipelines(
        stable := build_stable_diffusion_pipeline(), estimator, controlnet=build_controlnet(stable.unet)
    )
    assert pipe.depth_image_encoder is estimator.image_encoder
    assert pipe.image_encoder is None
    assert pipe.depth_estimator.components == estimator.components
    expected = generate(pipe)
    depth = estimator(build_image(), generator=seeded()).log_depth
    arguments = {**STEPS, "depth_kwargs": {"generator": seeded()}}
    np.testing.assert_array_equal(pipe("a", build_image(), **arguments).log_depth, depth)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["depth_image_encoder"] == ["diffusers", "ImageEncoder"]
    loaded = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    arguments["depth_kwargs"] = {"generator": seeded()}
    np.testing.assert_allclose(loaded("a", build_image(), **arguments).log_depth, depth, atol=1e-5)
    assert DepthFMControlNetImg2ImgPipeline.from_pipe(pipe).depth_image_encoder is pipe.depth_image_encoder
    pipe.enable_model_cpu_offload(device="cpu")
    assert hasattr(pipe.depth_image_encoder, "_hf_hook")
    np.testing.assert_allclose(generate(pipe), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"The components of the depth estimator \(`depth_\*`\): `unet` must take 8"):
        DepthFMControlNetPipeline(**{**pipe.components, "depth_image_encoder": None}, requires_safety_checker=False)


def test_a_folder_of_before_loads_without_image_encoder(tmp_path):
    pipe, _ = build_pipelines()
    pipe.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    assert index.pop("depth_image_encoder") == [None, None]
    path.write_text(json.dumps(index))
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.depth_image_encoder is None
    assert np.array_equal(generate(loaded), generate(pipe))


def test_vae_of_another_kind_for_depth():
    """The depth estimator's components are its own: another autoencoder, of another scaling factor."""
    estimator = build_depth_estimator()
    estimator.vae = build_vae(seed=9, scaling_factor=0.7)
    stable = build_stable_diffusion_pipeline()
    pipe = DepthFMControlNetPipeline.from_pipelines(stable, estimator, controlnet=build_controlnet(stable.unet))
    expected = estimator(build_image(), generator=depth_generator(seeded())).log_depth
    assert np.array_equal(pipe("a", build_image(), **STEPS, generator=seeded()).log_depth, expected)
