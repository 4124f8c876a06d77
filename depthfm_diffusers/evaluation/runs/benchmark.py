"""Running a model over a benchmark: every image once, stopped and gone on with at will, by one process or several."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ...utils.files import (atomic_write, save_json,)
from ...export.images import save_image
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ...inference.prediction_files import describe_run
from ...inference.result_folder import now
from .contact_sheet import (contact_sheet, pick_images,)
from ..data.open_benchmark import BenchmarkData
from .report import build_report
from .result_files import (ResultWriter, begin_run, check_run, partial_folder, read_results, remove_results,)
from .scoring import (EvaluationSettings, Protocol, score_sample,)


def run_evaluation(
    pipe: DepthFMPipeline,
    data: BenchmarkData,
    settings: EvaluationSettings,
    output: str | os.PathLike[str],
    model: Mapping[str, Any],
    contact_sheet_path: str | os.PathLike[str] | None = None,
    processes: PartialState | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Scores a model on every image of a benchmark and writes the report.

    Until the report is complete, the results of single images are in a folder beside it (see `result_files`). When the
    run is stopped, the same call goes on from there; a call with another model, other data, settings or versions is
    refused. The report does not depend on where it was stopped, nor on the number of processes; an earlier report at
    `output` is replaced.

    Args:
        pipe: The pipeline, on its device, quiet.
        data: The benchmark, from `datasets.open_benchmark`.
        settings: What to evaluate with.
        output: The JSON file to write; its folder is made if there is none.
        model: What identifies the model in the report: `name`, which may differ when a run is continued, and what may
            not, such as `sha256` from `model_fingerprint`.
        contact_sheet_path: PNG file of the best, median and worst images to write; `None` for none.
        processes: The state of the processes that share the work, all calling this with the same arguments and seeing
            the same files; `None` if there is only this one.
        on_progress: Called with the number of images done so far and the number there will be, of this process and
            of what was found done; first before the first image.

    Returns:
        The report, on every process, see `report.build_report`.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If the results in the folder are of another evaluation or damaged, if an image cannot be used (the
            message names it), or if no image has a valid pixel.
        RuntimeError: If the network's output is not finite, or a process left images out.
    """
    output = Path(output)
    folder = partial_folder(output)
    protocol = Protocol.resolve(settings, data.config, pipe)
    described = describe_evaluation(pipe, data, settings, protocol, model)
    # A model may be called by another path when the run goes on; what it is must be the same.
    identity = copy.deepcopy(described)
    del identity["settings"]["model"]["name"]
    keys = data.keys[: settings.limit]
    rank, count = (0, 1) if processes is None else (processes.process_index, processes.num_processes)

    def wait_for_everyone() -> None:
        if processes is not None:
            processes.wait_for_everyone()

    if rank == 0:
        begin_run(folder, identity, now())
    wait_for_everyone()
    started = check_run(folder, identity)
    done = read_results(folder)
    # Nobody writes before everybody has read: all see the same images done, and share the rest alike.
    wait_for_everyone()
    pending = [index for index, key in enumerate(keys) if key not in done][rank::count]
    found = sum(key in done for key in keys)
    if on_progress is not None:
        on_progress(found, found + len(pending))
    with ResultWriter(folder, rank) as writer, threads(settings.threads):
        for position, index in enumerate(pending, start=1):
            begin = time.perf_counter()
            entry = _score(pipe, data, index, protocol)
            writer.add({**entry, "seconds": round(time.perf_counter() - begin, 3)})
            if on_progress is not None:
                on_progress(found + position, found + len(pending))

    wait_for_everyone()
    entries = read_results(folder)
    missing = [key for key in keys if key not in entries]
    if missing:
        raise RuntimeError(
            f"{len(missing)} of {len(keys)} images were not evaluated, the first is {missing[0]!r}: do all processes "
            f"write to the same folder {folder}?"
        )
    report = build_report(described, [entries[key] for key in keys], {"started": started, "finished": now()})
    # Nobody removes what another is still reading.
    wait_for_everyone()
    if rank == 0:
        if contact_sheet_path is not None:
            with threads(settings.threads):
                sheet = contact_sheet(pipe, data, pick_images(report["per_image"]), protocol)
            with atomic_write(contact_sheet_path) as temporary:
                save_image(temporary, sheet)
        save_json(output, report)
        remove_results(folder)
    return report


def describe_evaluation(
    pipe: DepthFMPipeline,
    data: BenchmarkData,
    settings: EvaluationSettings,
    protocol: Protocol,
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the results of an evaluation depend on.

    Args:
        pipe: The pipeline.
        data: The benchmark.
        settings: What to evaluate with.
        protocol: The same with every default filled in.
        model: What identifies the model.

    Returns:
        A dictionary that JSON can hold, with `settings` and `versions`.
    """
    run = describe_run(pipe, settings.for_prediction(), "", "")
    device = torch.cuda.get_device_name(pipe.device) if pipe.device.type == "cuda" else pipe.device.type
    return {
        "settings": {
            "benchmark": data.config.settings(),
            "data": {"images": len(data), "fingerprint": data.fingerprint()},
            "model": {**model, "rescale_self_attention": pipe.config.rescale_self_attention},
            **asdict(protocol),
            "limit": settings.limit,
            "scheduler": run["scheduler"],
            "device": device,
            "dtype": run["dtype"],
            "threads": settings.threads,
        },
        "versions": run["versions"],
    }


def _score(pipe: DepthFMPipeline, data: BenchmarkData, index: int, protocol: Protocol) -> dict[str, Any]:
    """Scores an image; errors say which one it was."""
    try:
        return score_sample(pipe, data[index], protocol)
    except (ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"image {data.keys[index]!r}: {error}") from error


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Sets torch's number of threads for a while: sums that are split in another way have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
