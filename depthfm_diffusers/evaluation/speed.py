"""Times and memory of a DepthFM pipeline, beside Marigold's pipeline on the same networks."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, MarigoldDepthPipeline, UNet2DConditionModel
from PIL import Image

from ..image_processing import load_images
from ..pipelines.depthfm.pipeline_depthfm import DepthFMPipeline

SYNTHETIC_SIZE = (480, 640)
MIB = 2**20


@dataclass
class CallTimes:
    """Seconds of one call of a pipeline; the lists have one entry per call of that network."""

    encode: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    total: float = 0.0
    peak_bytes: int | None = None


def run_benchmark(
    pipe: DepthFMPipeline,
    image: Image.Image | None = None,
    steps: Sequence[int] = (1, 2),
    marigold_steps: Sequence[int] = (1, 4, 10),
    repeats: int = 5,
    processing_resolution: int | None = None,
) -> dict[str, Any]:
    """Times DepthFM and Marigold on the same UNet and autoencoder, interleaved, in this process.

    Each method is run once to warm up. Then every repeat runs all methods in turn, so that a machine that becomes
    slower does so for all; medians over the repeats are reported. Marigold's maps have no meaning here, as the
    networks were not trained for it; its times have.

    Args:
        pipe: The pipeline, on the device to measure.
        image: What to run on; noise of 640×480 pixels by default.
        steps: Numbers of steps of DepthFM, with the solver of its scheduler.
        marigold_steps: Numbers of DDIM steps of Marigold.
        repeats: Measurements of each.
        processing_resolution: Longer side in pixels that the networks see, 0 for the image's own; `None` is the
            model's default.

    Returns:
        A dictionary that JSON can hold: `rows` with median milliseconds (`encode_ms`, `evaluation_ms` of one network
        evaluation, `decode_ms`, `total_ms` of the whole call), `evaluations` per call, `peak_mib` and `ratio` of the
        whole call to the first row's; and `device`, `dtype`, sizes, versions and the meaning of `peak_mib`.

    Raises:
        ValueError: If no steps are named or `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}.")
    if not steps:
        raise ValueError("`steps` must name at least one number of steps.")
    pixels = torch.rand(1, 3, *SYNTHETIC_SIZE, generator=torch.Generator().manual_seed(0))
    if image is not None:
        (pixels,) = load_images(image)
    resolution = pipe.config.default_processing_resolution if processing_resolution is None else processing_resolution
    marigold = marigold_on_components(pipe)
    for each in (pipe, marigold):
        each.set_progress_bar_config(disable=True)

    def call(pipeline: DepthFMPipeline | MarigoldDepthPipeline, num_inference_steps: int) -> None:
        pipeline(
            pixels,
            num_inference_steps=num_inference_steps,
            processing_resolution=resolution,
            generator=torch.Generator().manual_seed(0),
        )

    methods = [("DepthFM", pipe, n) for n in steps] + [("Marigold (DDIM)", marigold, n) for n in marigold_steps]
    memory = _PeakMemory(pipe.device)
    measured: list[list[CallTimes]] = [[] for _ in methods]
    for repeat in range(-1, repeats):
        for times, (_, pipeline, n) in zip(measured, methods, strict=True):
            one = _measure(pipeline, lambda p=pipeline, n=n: call(p, n), memory)  # type: ignore[misc]
            if repeat >= 0:
                times.append(one)

    rows = [_summarize(name, n, times) for (name, _, n), times in zip(methods, measured, strict=True)]
    for row in rows:
        row["ratio"] = row["total_ms"] / rows[0]["total_ms"]
    return {
        "rows": rows,
        "repeats": repeats,
        "image_height": pixels.shape[-2],
        "image_width": pixels.shape[-1],
        "processing_resolution": resolution,
        "device": torch.cuda.get_device_name(pipe.device) if pipe.device.type == "cuda" else str(pipe.device),
        "threads": torch.get_num_threads(),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "solver": pipe.scheduler.config.solver_type,
        "peak_mib": memory.meaning,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def marigold_on_components(pipe: DepthFMPipeline) -> MarigoldDepthPipeline:
    """Makes diffusers' `MarigoldDepthPipeline` around the networks of a DepthFM pipeline.

    Args:
        pipe: The pipeline whose UNet, autoencoder and constant embedding are shared, not copied. If it has an image
            encoder, the UNet is copied, without the encoder's channels at its input.

    Returns:
        The pipeline with a DDIM scheduler as Marigold's, and no text encoder.
    """
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    marigold = MarigoldDepthPipeline(
        unet=_without_features(pipe.unet, pipe.vae.config.latent_channels),
        vae=pipe.vae,
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        prediction_type="depth",
    )
    with torch.no_grad():
        marigold.empty_text_embedding = pipe.prompt_embedding(1).to(pipe.device, pipe.unet.dtype)
    return marigold


def _without_features(unet: UNet2DConditionModel, latent_channels: int) -> UNet2DConditionModel:
    """Returns a UNet that takes two latents and nothing else: the same one, or one with a smaller first layer."""
    channels = 2 * latent_channels
    if unet.config.in_channels == channels:
        return unet
    smaller = UNet2DConditionModel.from_config(unet.config, in_channels=channels).to(unet.device, unet.dtype)
    weights = unet.state_dict()
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :channels]
    smaller.load_state_dict(weights)
    return smaller.eval()


def format_table(report: dict[str, Any]) -> str:
    """Formats the times of `run_benchmark` as a table for a terminal.

    Args:
        report: What `run_benchmark` returned.

    Returns:
        Lines of text without a final newline.
    """
    header = ("method", "steps", "evaluations", "encode", "evaluation", "decode", "whole call", "ratio", "peak MiB")
    lines = [header]
    for row in report["rows"]:
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        times = [f"{row[name]:.1f} ms" for name in ("encode_ms", "evaluation_ms", "decode_ms", "total_ms")]
        lines.append((row["method"], str(row["steps"]), str(row["evaluations"]), *times, f"{row['ratio']:.2f}x", peak))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    notes = [
        f"{report['image_width']}x{report['image_height']} image, processing resolution "
        f"{report['processing_resolution']}, {report['dtype']} on {report['device']}, {report['threads']} CPU "
        f"threads, medians of {report['repeats']}",
        f"ratio: whole call, to the first row's; peak MiB: {report['peak_mib']}",
    ]
    return "\n".join(table + notes)


def _summarize(method: str, steps: int, times: list[CallTimes]) -> dict[str, Any]:
    def median_ms(values: list[float]) -> float:
        return 1000 * statistics.median(values)

    peaks = [one.peak_bytes for one in times if one.peak_bytes is not None]
    return {
        "method": method,
        "steps": steps,
        "evaluations": len(times[0].evaluations),
        "encode_ms": median_ms([sum(one.encode) for one in times]),
        "evaluation_ms": median_ms([evaluation for one in times for evaluation in one.evaluations]),
        "decode_ms": median_ms([sum(one.decode) for one in times]),
        "total_ms": median_ms([one.total for one in times]),
        "peak_mib": max(peaks) / MIB if peaks else None,
    }


def _measure(
    pipeline: DepthFMPipeline | MarigoldDepthPipeline, call: Callable[[], None], memory: _PeakMemory
) -> CallTimes:
    """Runs one call and measures its networks."""
    times = CallTimes()
    device = pipeline.device
    encoder = getattr(pipeline, "image_encoder", None)
    with (
        _timed(pipeline.vae, "encode", times.encode, device),
        nullcontext() if encoder is None else _timed(encoder, "forward", times.encode, device),
        _timed(pipeline.unet, "forward", times.evaluations, device),
        _timed(pipeline.vae, "decode", times.decode, device),
    ):
        memory.reset()
        start = _now(device)
        call()
        times.total = _now(device) - start
        times.peak_bytes = memory.read()
    return times


@contextmanager
def _timed(module: torch.nn.Module, method: str, seconds: list[float], device: torch.device) -> Iterator[None]:
    """Appends the duration of each call of a method to a list, while the block runs."""
    had_own = method in vars(module)
    original = getattr(module, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = _now(device)
        result = original(*args, **kwargs)
        seconds.append(_now(device) - start)
        return result

    setattr(module, method, timed)
    try:
        yield
    finally:
        if had_own:
            setattr(module, method, original)
        else:
            delattr(module, method)


def _now(device: torch.device) -> float:
    """Returns the time, after the device has finished its work."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


class _PeakMemory:
    """Highest memory use since the last reset.

    Args:
        device: On CUDA, what torch allocated there; otherwise the resident memory of the whole process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self.meaning = "allocated by torch on the GPU, per method"
        elif self._reset_resident():
            self.meaning = "resident memory of the whole process, per method"
        elif sys.platform == "win32":
            self.meaning = "not known on this system"
        else:
            self.meaning = "resident memory of the whole process, highest of all methods so far"

    def reset(self) -> None:
        """Resets the peak if the system allows it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._reset_resident()

    def read(self) -> int | None:
        """Returns bytes; `None` if the system does not report them."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":
            return None
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def _reset_resident(self) -> bool:
        """Sets the reported peak (`ru_maxrss`) to the memory in use, which Linux allows; returns whether it did."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True
