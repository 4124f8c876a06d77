"""LoRA: the base stays as it is, the adapters are few, and what is saved predicts as what was trained."""

from __future__ import annotations

import shutil

import pytest
import torch
import train_depthfm
from helpers.components import build_components
from helpers.training_runs import flow_flags, reset_accelerate
from safetensors.torch import load_file

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.training.lora import add_lora, lora_state_dict
from depthfm_diffusers.training.settings import LoraSettings

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture
def base(tmp_path):
    DepthFMPipeline(**build_components(), default_processing_resolution=64).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def lora_flags(shard, parts, base, output, *more: str) -> list[str]:
    flags = flow_flags(shard, parts, output, "--lora_rank", "2", "--lora_alpha", "4", *more)
    at = flags.index("--vae")
    flags[at : at + 4] = ["--pretrained_model_name_or_path", str(base)]
    flags[flags.index("1e-3")] = "1e-2"
    return flags


def test_adapters_are_all_that_changes_and_reload_to_the_same_prediction(shard, parts, base, tmp_path, image):
    trained = {}
    save_adapters = train_depthfm.save_adapters

    def keep(unet, folder):
        trained["unet"] = unet
        save_adapters(unet, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_depthfm, "save_adapters", keep)
        train_depthfm.main(lora_flags(shard, parts, base, tmp_path / "run", "--max_train_steps", "4"))

    original = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    unet = trained["unet"]
    frozen = {name.replace(".base_layer", ""): p for name, p in unet.named_parameters() if "lora_" not in name}
    assert frozen.keys() == original.keys()
    assert all(torch.equal(frozen[name], original[name]) for name in original)
    adapters = sum(tensor.numel() for tensor in lora_state_dict(unet).values())
    assert 0 < adapters < 0.05 * sum(tensor.numel() for tensor in original.values())
    written = load_file(tmp_path / "run" / "pytorch_lora_weights.safetensors")
    assert sum(tensor.numel() for tensor in written.values()) == adapters
    assert not (tmp_path / "run" / "unet").exists()
    # Checkpoints hold the adapters, not the frozen weights.
    assert not (tmp_path / "run" / "checkpoint-4" / "model.safetensors").exists()

    def predict(pipe):
        pipe.set_progress_bar_config(disable=True)
        return pipe(image, output_type="pt", generator=torch.Generator().manual_seed(0)).log_depth

    plain = predict(DepthFMPipeline.from_pretrained(base))
    reference = DepthFMPipeline.from_pretrained(base)
    reference.unet = unet
    expected = predict(reference)
    assert not torch.allclose(expected, plain, atol=1e-4)

    loaded = DepthFMPipeline.from_pretrained(base)
    loaded.load_lora_weights(tmp_path / "run")
    torch.testing.assert_close(predict(loaded), expected, rtol=0, atol=1e-6)
    loaded.fuse_lora()
    loaded.unload_lora_weights()
    torch.testing.assert_close(predict(loaded), expected, rtol=0, atol=1e-4)

    by_adapter = DepthFMPipeline.from_pretrained(base)
    by_adapter.unet.load_lora_adapter(tmp_path / "run", prefix="unet", weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(predict(by_adapter), expected, rtol=0, atol=1e-6)


def test_resumed_adapters_equal_those_never_stopped(shard, parts, base, tmp_path):
    whole = lora_flags(shard, parts, base, tmp_path / "whole", "--max_train_steps", "4")
    train_depthfm.main(whole)
    reset_accelerate()
    first = lora_flags(shard, parts, base, tmp_path / "halves", "--max_train_steps", "4")
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    (tmp_path / "halves" / "pytorch_lora_weights.safetensors").unlink()
    shutil.rmtree(tmp_path / "halves" / "checkpoint-4")
    train_depthfm.main([*first, "--resume_from_checkpoint", "latest"])
    one, other = (load_file(tmp_path / n / "pytorch_lora_weights.safetensors") for n in ("whole", "halves"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(tensor.abs().max() > 0 for name, tensor in one.items() if "lora_B" in name)


def test_no_layer_of_that_name_is_refused():
    with pytest.raises(ValueError, match="to_nowhere"):
        add_lora(build_components()["unet"], LoraSettings(2, 2.0, ("to_nowhere",)))
