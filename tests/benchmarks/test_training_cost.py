"""The counters of `training_cost.py` against hand computation and real tensors; accelerate's config files."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
import training_cost
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from helpers import forked_python
from helpers.components import build_unet, build_vae
from helpers.repository import ROOT
from step_counter import StepCost, StepCounter, StepSettings, count_step, parameter_bytes, run_step
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from training_cost import SD_VAE, UNETS, format_report, main, parameter_counts, sharded_bytes, step_seconds

CONFIGS = ROOT / "training" / "configs" / "accelerate"


def unet_config() -> dict[str, object]:
    return dict(build_unet().config)


def vae_config() -> dict[str, object]:
    return dict(build_vae().config)


# 64x64 pixels are 8x8 latents here.
SMALL = StepSettings(height=64, width=64, batch_size=2, bf16=False, cached_latents=True, tokens=4)


@cache
def counted(settings: StepSettings) -> StepCost:
    """The cost of a step of the tiny networks."""
    return count_step(unet_config(), vae_config(), settings)


def test_parameters_of_stable_diffusion():
    """As published for 4 channels, beside which conv_in grows by 4 x 320 x 3 x 3."""
    grown = 4 * 320 * 3 * 3
    assert sum(parameter_counts(UNet2DConditionModel, UNETS["sd15"])) == 859_520_964 + grown
    assert sum(parameter_counts(UNet2DConditionModel, UNETS["sd21"])) == 865_910_724 + grown
    assert sum(parameter_counts(AutoencoderKL, SD_VAE)) == 83_653_863


def test_flops_of_a_convolution_and_of_attention():
    convolution = torch.nn.Conv2d(8, 16, 3, padding=1)
    x = torch.zeros(2, 8, 10, 12, requires_grad=True)
    with StepCounter([*convolution.parameters(), x]) as counter:
        y = convolution(x)
        forward = counter.total_flops
        y.sum().backward()
    assert forward == 2 * (2 * 16 * 10 * 12) * (8 * 3 * 3)
    # Gradients of input and weights: as many each.
    assert counter.total_flops == 3 * forward

    q = torch.zeros(1, 2, 7, 16)
    with StepCounter([q]) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.total_flops == 2 * (2 * 2 * 7 * 7 * 16)


def test_activations_of_a_small_network():
    """Linear, ReLU, linear, by hand: the ReLU's output is kept, once, for itself and for the second layer."""
    with FakeTensorMode():
        network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
        x = torch.zeros(11, 5)
        with StepCounter([*network.parameters(), x]) as counter:
            y = network(x)
            # The output of the first layer, before the ReLU, is gone again; but it was there beside the other.
            assert counter.live == 4 * 11 * (7 + 3)
            assert counter.peak == 4 * 11 * (7 + 7)
            loss = y.sum()
            del y
            loss.backward()
            del loss
        gradients = 4 * sum(p.numel() for p in network.parameters())
        assert counter.live == gradients
        assert counter.live_copies == 0


def test_autocast_copies_are_told_from_activations():
    network = torch.nn.Linear(6, 4, bias=False)
    x = torch.zeros(3, 6, dtype=torch.bfloat16)
    with StepCounter([network.weight, x]) as counter, torch.autocast("cpu", torch.bfloat16):
        y = network(x)
        assert counter.live_copies == 2 * 6 * 4
        assert counter.live == 2 * 6 * 4 + y.nbytes


@pytest.mark.parametrize("everything", [False, True])
def test_counts_without_content_equal_a_real_step(everything):
    """Same operations on real tensors: bytes exactly, and FLOPs as torch's own counter has them."""
    changes = {"bf16": True, "gradient_checkpointing": True, "decoded_loss": True, "cached_latents": False}
    settings = replace(SMALL, **changes) if everything else SMALL
    assert run_step(build_unet(), build_vae(), settings) == counted(settings)
    with FlopCounterMode(display=False) as flops:
        run_step(build_unet(), build_vae(), settings)
    assert counted(settings).flops == flops.get_total_flops()


def test_kept_for_backward_is_what_autograd_saves():
    """Without checkpointing: the distinct storages that `saved_tensors_hooks` sees, and the network's output."""
    unet = build_unet()
    known = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    sample, time, embedding = torch.zeros(2, 8, 8, 8), torch.zeros(2), torch.zeros(2, 4, 16)
    known |= {t.untyped_storage().data_ptr() for t in (sample, embedding)}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = unet.train()(sample, time, embedding, return_dict=False)[0]
    saved[output.untyped_storage().data_ptr()] = output.untyped_storage()
    by_hooks = sum(storage.nbytes() for storage in saved.values())
    kept = counted(SMALL).retained
    # The counter also sees the concatenated input.
    assert kept - sample.nbytes == pytest.approx(by_hooks, rel=0.02)


def test_what_saves_memory_and_what_costs_time():
    def cost(**changes: object):
        return counted(replace(SMALL, **changes))

    plain = cost()
    checkpointed = cost(gradient_checkpointing=True)
    assert checkpointed.retained < 0.5 * plain.retained
    assert checkpointed.forward_flops == plain.forward_flops
    # Blocks are computed once more, each up to the last tensor that its backward pass needs.
    assert 0.5 < (checkpointed.backward_flops - plain.backward_flops) / plain.forward_flops < 1.0

    halved = cost(bf16=True)
    assert 0.5 * plain.retained < halved.retained < 0.9 * plain.retained  # norms stay in float32
    # Of convolutions and projections; norms are not copied.
    weights = 4 * sum(parameter_counts(UNet2DConditionModel, unet_config()))
    assert 0.45 * weights < halved.weight_copies < 0.5 * weights

    encoded = cost(cached_latents=False, batch_size=4, accumulated=True)
    assert plain.encode_flops == 0 < encoded.encode_flops
    assert encoded.flops - encoded.encode_flops == 2 * plain.flops
    # Twice the activations; gradients that exist already are not allocated again.
    assert encoded.peak < 2 * plain.peak


def test_step_must_fit_the_networks():
    with pytest.raises(ValueError, match="multiples of 64, got 100x64"):
        count_step(unet_config(), vae_config(), StepSettings(height=100, width=64))
    with pytest.raises(ValueError, match="8 input and 4 output channels, got 4 and 4"):
        count_step(unet_config() | {"in_channels": 4}, vae_config(), SMALL)


def test_state_bytes_are_those_of_the_optimizer_and_the_average():
    unet = build_unet()
    for parameter in unet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(unet.parameters())
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    state = parameter_bytes([p.numel() for p in unet.parameters()])
    assert state["adam"] == sum(t.nbytes for t in moments)
    assert state["ema"] == sum(t.nbytes for t in EMAModel(unet.parameters()).shadow_params)
    # One small tensor stays in float32; of a large one each block of 256 has two float32 scales.
    assert parameter_bytes([4095])["adam_8bit"] == 8 * 4095
    assert parameter_bytes([4097])["adam_8bit"] == 2 * 4097 + 2 * 4 * 17


def test_sharding_and_time():
    assert sharded_bytes(1000, 1) == {"ddp": 20_000, "zero2": 20_000, "fsdp2": 16_000}
    assert sharded_bytes(1000, 4) == {"ddp": 20_000, "zero2": 8_000, "fsdp2": 4_000}
    assert step_seconds(3e12, 100, 0.3) == pytest.approx(0.1)


def test_command_writes_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_cost, "VARIANTS", {"bf16": {}})
    (tmp_path / "unet.json").write_text(build_unet().to_json_string())
    (tmp_path / "vae.json").write_text(build_vae().to_json_string())
    output = tmp_path / "cost.json"
    flags = ["--unet", str(tmp_path / "unet.json"), "--vae", str(tmp_path / "vae.json"), "--resolution", "64", "64"]
    main([*flags, "--batch_size", "1", "--accumulation", "--output", str(output)])
    report = json.loads(output.read_text())
    assert format_report(report) + "\n" == capsys.readouterr().out
    row = report["rows"][0]
    state = report["state_bytes"]
    step = row["cost"]["peak"] + 4 * report["vae_parameters"]
    # Weights, older gradients, averaged weights and two moments.
    assert row["total"] == step + 3 * state["weights"] + state["adam"]
    with pytest.raises(SystemExit):
        main([*flags, "--utilisation", "1.5"])
    with pytest.raises(SystemExit, match="neither a known architecture nor"):
        main(["--unet", "sd9"])


EXPECTED = {
    "cpu_two_processes": (DistributedType.MULTI_GPU, 2, 1, "no"),
    "deepspeed_zero2": (DistributedType.DEEPSPEED, 4, 1, None),
    "fsdp": (DistributedType.FSDP, 4, 1, "bf16"),
    "multi_gpu": (DistributedType.MULTI_GPU, 4, 1, "bf16"),
    "multi_node": (DistributedType.MULTI_GPU, 16, 2, "bf16"),
    "one_gpu": (DistributedType.NO, 1, 1, "bf16"),
}


def launch_arguments(name: str, *more: str):
    flags = ["--config_file", str(CONFIGS / f"{name}.yaml"), *more, "script.py"]
    return _validate_launch_command(launch_command_parser().parse_args(flags))[0]


def test_every_config_file_is_expected():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_config_file_loads_in_accelerate(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    found = (config.distributed_type, config.num_processes, config.num_machines, config.mixed_precision)
    assert found == EXPECTED[name]
    assert config.use_cpu == (name == "cpu_two_processes")
    launched = launch_arguments(name)
    assert launched.use_fsdp == (name == "fsdp")
    assert launched.use_deepspeed == (name == "deepspeed_zero2")
    assert launched.multi_gpu == (EXPECTED[name][0] is DistributedType.MULTI_GPU)
    assert launched.mixed_precision == (EXPECTED[name][3] or "no")


def test_fsdp_wraps_the_blocks_of_the_unet(monkeypatch):
    """What the processes read from their environment, and which modules accelerate then shards one by one."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    for key, value in prepare_multi_gpu_env(launch_arguments("fsdp")).items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert not plugin.activation_checkpointing
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNETS["sd21"])
    plugin.set_auto_wrap_policy(unet)
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, unet)
    wrapped = {name: module for name, module in unet.named_modules() if wraps(module)}
    assert {type(module).__name__ for module in wrapped.values()} == {"ResnetBlock2D", "Transformer2DModel"}
    assert not any(a != b and a.startswith(f"{b}.") for a in wrapped for b in wrapped)
    share = sum(p.numel() for m in wrapped.values() for p in m.parameters()) / sum(
        p.numel() for p in unet.parameters()
    )
    assert share > 0.9


def test_zero2_is_asked_for():
    """With float32 weights under autocast: bfloat16 weights would not take the script's float32 inputs."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    launched = launch_arguments("deepspeed_zero2")
    config = HfDeepSpeedConfig(json.loads((ROOT / launched.deepspeed_config_file).read_text()))
    assert config.get_value("zero_optimization.stage") == 2
    assert config.get_value("torch_autocast") == {"enabled": True, "dtype": "bfloat16"}
    assert config.get_value("bf16.enabled") is None
    assert config.get_value("train_micro_batch_size_per_gpu") == "auto"
    assert config.get_value("gradient_accumulation_steps") == "auto"


def test_multi_node_needs_only_address_and_rank():
    launched = launch_arguments("multi_node", "--main_process_ip", "10.0.0.1", "--machine_rank", "1")
    prepare_multi_gpu_env(launched)
    assert (launched.nproc_per_node, launched.nnodes, launched.node_rank) == ("8", "2", 1)
    assert launched.rdzv_endpoint == "10.0.0.1:29500"


def test_two_processes_on_the_cpu_add_up(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator()\n"
        "total = accelerator.reduce(torch.tensor(accelerator.process_index + 1.0), 'sum')\n"
        "accelerator.print(accelerator.num_processes, accelerator.device.type, total.item())\n"
        "accelerator.end_training()\n"
    )
    config = CONFIGS / "cpu_two_processes.yaml"
    command = ["-m", "accelerate.commands.launch", "--config_file", str(config), str(script)]
    errors = tmp_path / "errors"
    status, said = forked_python.run(
        command, tmp_path / "output", errors=errors, environment={"ACCELERATE_USE_CPU": "true"}
    )
    assert status == 0, errors.read_text(encoding="utf-8")
    assert said.split() == ["2", "cpu", "3.0"]
