"""`depthfm evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.choices import ALIGNMENT_SPACES
from .arguments import (
    Subcommands,
    add_command,
    add_model_arguments,
    add_prediction_arguments,
    find_model,
    prediction_settings,
)
from .reports import add_report_arguments, add_report_output, check_report_files
from .terminal import Progress

if TYPE_CHECKING:
    from accelerate import PartialState


def add_parser(commands: Subcommands) -> None:
    """Adds `depthfm evaluate` to the commands."""
    parser = add_command(
        commands,
        "evaluate",
        evaluate,
        "Score a model on a benchmark, or on a folder of your own images with their depth.",
        "Writes a JSON report with the scores of every image, their means with intervals, every setting and version, "
        "and a picture of the best, the median and the worst images. Prints the means and, for comparison, the upper "
        "bound: the means of the true depth in the model's representation. If stopped, the same command resumes. "
        "Several processes share the work: `accelerate launch --multi_gpu --num_processes N -m depthfm_diffusers.cli "
        "evaluate ...`. See docs/evaluate.md.",
    )
    parser.add_argument(
        "--benchmark", required=True, metavar="NAME_OR_TOML", help="name from --list, or a .toml file of your own"
    )
    parser.add_argument("--root", required=True, type=Path, metavar="DIR", help="folder or file of its data")
    add_report_output(parser)
    parser.add_argument("--list", action=_ListBenchmarks, nargs=0, help="print the benchmarks and exit")
    add_model_arguments(parser)
    add_prediction_arguments(parser, "members to average, whose spread is scored from 2 on")
    parser.add_argument(
        "--alignment", choices=ALIGNMENT_SPACES, help="space of the alignment to the truth (default: the benchmark's)"
    )
    add_report_arguments(parser)


def evaluate(args: argparse.Namespace) -> int:
    """Runs `depthfm evaluate`: scores a model on a benchmark."""
    import torch

    from ..checkpoints.model_folder import load_pipeline, model_fingerprint, resolve_model
    from ..evaluation.data.configs import load_benchmark
    from ..evaluation.data.open_benchmark import open_benchmark
    from ..evaluation.runs.benchmark import run_evaluation
    from ..evaluation.runs.report import format_report
    from ..evaluation.runs.scoring import EvaluationSettings

    settings = EvaluationSettings(
        prediction_settings(args),
        alignment=args.alignment,
        limit=args.limit,
        threads=args.threads,
    )
    sheet = check_report_files(args.output, args.contact_sheet)
    # Errors in the data are found before a network is loaded.
    data = open_benchmark(load_benchmark(args.benchmark), args.root)
    model_folder = resolve_model(find_model(args), args.variant)
    for path in (args.output, sheet):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _processes(args.device) as processes:
        device = args.device if processes.num_processes == 1 or args.device != "auto" else str(processes.device)
        pipe = load_pipeline(model_folder, device, getattr(torch, args.dtype), args.variant)
        pipe.set_progress_bar_config(disable=True)
        with closing(Progress(processes.is_main_process)) as progress:
            report = run_evaluation(
                pipe,
                data,
                settings,
                args.output,
                {
                    "name": args.model or model_folder.name,
                    "sha256": model_fingerprint(model_folder),
                    "variant": args.variant,
                },
                contact_sheet_path=sheet,
                processes=processes,
                on_progress=progress.show,
            )
        if processes.is_main_process:
            print(f"{format_report(report)}\n\nwritten to {args.output}, contact sheet {sheet}")
    return 0


class _ListBenchmarks(argparse.Action):
    """Prints the benchmarks and exits, as `--version` does with the version."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        from ..evaluation.data.configs import benchmark_names, load_benchmark

        for name in benchmark_names():
            print(f"{name.ljust(16)}{load_benchmark(name).title}")
        parser.exit()


@contextmanager
def _processes(device: str) -> Iterator[PartialState]:
    """Yields the processes that a launcher started, this one among them; leaves their group at the end."""
    from accelerate import PartialState
    from diffusers.utils.torch_utils import get_device

    on_cpu = (get_device() if device == "auto" else device).startswith("cpu")
    # A process that is done early waits for the others, however long they take.
    processes = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
    try:
        yield processes
    finally:
        processes.destroy_process_group()
