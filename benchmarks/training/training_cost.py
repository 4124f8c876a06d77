"""Memory and FLOPs of one training step, counted; and what they say about time on some GPUs, which is an estimate.

    python benchmarks/training/training_cost.py --output training_cost.json

Nothing is computed but shapes, so that it needs neither a GPU nor weights. `--check` compares the counters with real
steps of the bundled architecture on the CPU instead: torch's allocator, torch's FLOP counter, AdamW and EMAModel.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from step_counter import StepSettings, count_step, parameter_bytes, run_step
from torch.utils.flop_counter import FlopCounterMode

from depthfm_diffusers import default_model_path
from depthfm_diffusers.utils.errors import describe_error

GB = 10**9
TINY_UNET = Path(__file__).parents[2] / "training" / "configs" / "depthfm-tiny-unet.json"

# unet/config.json of stable-diffusion-v1-5 and stable-diffusion-2-1; in_channels as DepthFM grows it (there: 4).
_SD_UNET = {
    "sample_size": 64,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
UNETS = {
    "sd15": _SD_UNET | {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": _SD_UNET
    | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
}
# vae/config.json of both.
SD_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
}

# TFLOP/s: the vendor's published peak of dense bfloat16 matrix products with float32 accumulation (NVIDIA's data
# sheets and architecture papers, without sparsity). No network reaches it.
PEAK_TFLOPS = {"RTX 3090": 71, "RTX 4090": 165, "L4": 121, "A100": 312, "L40S": 362, "H100 SXM, H200": 989}

# What is counted for each batch size.
VARIANTS: dict[str, dict[str, bool]] = {
    "float32": {"bf16": False},
    "float32, checkpointing": {"bf16": False, "gradient_checkpointing": True},
    "bf16": {},
    "bf16, checkpointing": {"gradient_checkpointing": True},
    "bf16, checkpointing, decoded loss": {"gradient_checkpointing": True, "decoded_loss": True},
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--unet", default="sd21", help=f"{', '.join(UNETS)}, or a UNet's JSON configuration.")
    parser.add_argument("--vae", default="sd", help="sd, or an AutoencoderKL's JSON configuration.")
    parser.add_argument("--resolution", type=int, nargs=2, default=[384, 512], metavar=("H", "W"), help="Of images.")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 8], help="Samples on one GPU at once.")
    parser.add_argument("--accumulation", action="store_true", help="Gradients of an earlier batch exist already.")
    parser.add_argument("--processes", type=int, default=4, help="GPUs, for what sharding saves.")
    parser.add_argument(
        "--utilisation", type=float, default=0.3, help="Assumed share of a GPU's peak that is reached; not measured."
    )
    parser.add_argument("--check", action="store_true", help="Compare with real steps on the CPU instead.")
    parser.add_argument("--output", type=Path, help="JSON file for the result.")
    args = parser.parse_args(argv)
    if min(args.batch_size) < 1 or args.processes < 1:
        parser.error("--batch_size and --processes must be at least 1")
    if not 0 < args.utilisation <= 1:
        parser.error(f"--utilisation must be in (0, 1], got {args.utilisation}")
    if any(side < 64 or side % 64 for side in args.resolution):
        parser.error(f"--resolution must be multiples of 64, got {args.resolution}")
    return args


def parameter_counts(model_class: type[torch.nn.Module], config: dict[str, Any]) -> list[int]:
    """Number of elements of each parameter, without making any."""
    with torch.device("meta"):
        return [p.numel() for p in model_class.from_config(config).parameters()]


def sharded_bytes(parameters: int, processes: int) -> dict[str, int]:
    """Bytes on each GPU for weights, gradients and AdamW under three ways to use several, by their documentation.

    Args:
        parameters: Trained parameters.
        processes: GPUs.

    Returns:
        All in float32, without averaged weights. `ddp`: all whole, and gradients once more in the buckets that are
        reduced; `zero2`: whole weights, and a share of the gradients, the moments and the optimizer's copy of the
        weights; `fsdp2`: a share of everything, not counting the blocks that are gathered at a time.
    """
    return {
        "ddp": parameters * (4 + 4 + 4 + 8),
        "zero2": parameters * 4 + -(-parameters * (4 + 4 + 8) // processes),
        "fsdp2": -(-parameters * (4 + 4 + 8) // processes),
    }


def step_seconds(flops: float, peak_tflops: float, utilisation: float) -> float:
    """Estimated seconds: FLOPs over the assumed share of the peak."""
    return flops / (peak_tflops * 1e12 * utilisation)


def count_all(args: argparse.Namespace) -> dict[str, Any]:
    """Counts every variant at every batch size."""
    unet = UNETS[args.unet] if args.unet in UNETS else _read_config(args.unet)
    vae = SD_VAE if args.vae == "sd" else _read_config(args.vae)
    numels = parameter_counts(UNet2DConditionModel, unet)
    vae_bytes = 4 * sum(parameter_counts(AutoencoderKL, vae))
    state = parameter_bytes(numels)
    height, width = args.resolution
    rows = []
    for batch_size in args.batch_size:
        for name, changes in VARIANTS.items():
            settings = StepSettings(height, width, batch_size, accumulated=args.accumulation, **changes)
            cost = count_step(unet, vae, settings)
            older = state["weights"] if args.accumulation else 0
            step = cost.peak + older + vae_bytes + state["weights"]
            rows.append(
                {
                    "variant": name,
                    "settings": asdict(settings),
                    "cost": asdict(cost) | {"flops": cost.flops},
                    "total": step + state["adam"] + state["ema"],
                    "total_8bit_adam_no_ema": step + state["adam_8bit"],
                    "seconds": {
                        device: step_seconds(cost.flops, peak, args.utilisation)
                        for device, peak in PEAK_TFLOPS.items()
                    },
                }
            )
    return {
        "unet": args.unet,
        "vae": args.vae,
        "unet_parameters": sum(numels),
        "vae_parameters": vae_bytes // 4,
        "state_bytes": state,
        "sharded_bytes": sharded_bytes(sum(numels), args.processes),
        "processes": args.processes,
        "utilisation": args.utilisation,
        "peak_tflops": PEAK_TFLOPS,
        "rows": rows,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def format_report(report: dict[str, Any]) -> str:
    """The counts as Markdown tables; GB are 10^9 bytes."""
    state = report["state_bytes"]
    sharded = report["sharded_bytes"]
    lines = [
        f"{report['unet']}: {report['unet_parameters']:,} parameters in the UNet, {report['vae_parameters']:,} in the "
        "autoencoder.",
        f"Always there, GB: weights {state['weights'] / GB:.2f}, Adam {state['adam'] / GB:.2f} (8-bit "
        f"{state['adam_8bit'] / GB:.2f}), averaged weights {state['ema'] / GB:.2f}, autoencoder "
        f"{4 * report['vae_parameters'] / GB:.2f}.",
        f"Weights, gradients and Adam on each of {report['processes']} GPUs, GB: "
        + ", ".join(f"{name} {size / GB:.2f}" for name, size in sharded.items())
        + ".",
        "",
        "| batch | step | kept for backward | bf16 copies | peak of the step | in all | 8-bit Adam, no average |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        cost = row["cost"]
        sizes = (cost["retained"], cost["weight_copies"], cost["peak"], row["total"], row["total_8bit_adam_no_ema"])
        cells = [str(row["settings"]["batch_size"]), row["variant"], *(f"{size / GB:.2f}" for size in sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    devices = list(report["peak_tflops"])
    header = ["batch", "step", "encode", "forward", "backward", "all", *devices]
    lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in report["rows"]:
        if not row["settings"]["bf16"]:
            continue  # the peaks are for bfloat16
        cost = row["cost"]
        flops = (cost["encode_flops"], cost["forward_flops"], cost["backward_flops"], cost["flops"])
        cells = [str(row["settings"]["batch_size"]), row["variant"], *(f"{f / 1e12:.2f}" for f in flops)]
        cells += [f"{row['seconds'][device]:.2f} s" for device in devices]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"First table: GB, counted. Second: TFLOP, counted; seconds are estimates, FLOPs / ({report['utilisation']} x "
        "the vendor's dense bf16 peak): an assumption, no measurement. --cache_latents saves the encoder's part.",
    ]
    return "\n".join(lines)


def check_counters(height: int = 128, width: int = 192, batch_size: int = 4) -> list[dict[str, Any]]:
    """Compares counts of the bundled architecture with real training steps on the CPU.

    Returns:
        For each quantity: `what`, `counted` and `measured`, in bytes or FLOPs.
    """
    unet_config = _read_config(TINY_UNET)
    vae_config = _read_config(default_model_path() / "vae" / "config.json")
    rows: list[dict[str, Any]] = []
    for name, changes in VARIANTS.items():
        settings = StepSettings(height, width, batch_size, tokens=1, **changes)
        counted = count_step(unet_config, vae_config, settings)
        measured = allocator_peak(unet_config, vae_config, settings)
        rows.append({"what": f"peak bytes, {name}", "counted": counted.peak, "measured": measured})
        unet, vae = UNet2DConditionModel.from_config(unet_config), AutoencoderKL.from_config(vae_config)
        with FlopCounterMode(display=False) as flops:
            run_step(unet, vae, settings)
        rows.append({"what": f"FLOPs, {name}", "counted": counted.flops, "measured": flops.get_total_flops()})
    state = parameter_bytes([p.numel() for p in unet.parameters()])
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    optimizer.step()
    moments = [value for values in optimizer.state.values() for value in values.values()]
    average = EMAModel(unet.parameters())
    for what, tensors in {
        "weights": list(unet.parameters()),
        "adam": moments,
        "ema": average.shadow_params,
    }.items():
        rows.append({"what": f"{what} bytes", "counted": state[what], "measured": sum(t.nbytes for t in tensors)})
    return rows


def allocator_peak(unet_config: dict[str, Any], vae_config: dict[str, Any], settings: StepSettings) -> int:
    """Highest number of bytes that torch's CPU allocator held during a real step, above what it held before."""
    unet, vae = UNet2DConditionModel.from_config(unet_config), AutoencoderKL.from_config(vae_config)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        run_step(unet, vae, settings)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def format_check(rows: list[dict[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    lines = ["| | counted | measured | counted / measured |", "|---|---|---|---|"]
    for row in rows:
        ratio = row["counted"] / row["measured"]
        lines.append(f"| {row['what']} | {row['counted']:,} | {row['measured']:,} | {ratio:.4f} |")
    return "\n".join(lines)


def _read_config(path: str | Path) -> dict[str, Any]:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise SystemExit(
            f"{path} is neither a known architecture nor a JSON configuration: {describe_error(error)}"
        ) from error


def main(argv: list[str] | None = None) -> None:
    """Counts and prints."""
    args = parse_args(argv)
    if args.check:
        rows = check_counters()
        report: dict[str, Any] = {"check": rows}
        print(format_check(rows))
    else:
        report = count_all(args)
        print(format_report(report))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
