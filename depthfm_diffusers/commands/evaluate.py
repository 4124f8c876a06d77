"""`depthfm evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.choices import ALIGNMENT_SPACES, DEPTH_NORMALIZATIONS, PREDICTION_FORMS, PROTOCOL_CHOICES
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

    from ..evaluation.data.benchmark_data import BenchmarkData
    from ..evaluation.runs.scoring import EvaluationSettings

# Arguments of a model, which have no meaning where its predictions are given.
MODEL_ARGUMENTS = (
    "model",
    "variant",
    "vae",
    "hparams",
    "empty_text_embedding",
    "text_encoder",
    "noise_augmentation_step",
    "trust_pickle",
    "dtype",
    "processing_resolution",
    "steps",
    "ensemble",
    "seed",
    "batch_size",
    "depth_normalization",
)


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
    scoring = parser.add_mutually_exclusive_group()
    scoring.add_argument(
        "--alignment", choices=ALIGNMENT_SPACES, help="space of the alignment to the truth (default: the benchmark's)"
    )
    scoring.add_argument(
        "--protocol",
        choices=PROTOCOL_CHOICES,
        help="score by a protocol of the field: marigold aligns depth by least squares, ppd log(depth + 1) by RANSAC; "
        "all: each, of the same predictions, in columns of its own (default: the benchmark's alignment)",
    )
    parser.add_argument(
        "--depth-normalization",
        choices=DEPTH_NORMALIZATIONS,
        default="depthfm",
        help="how the model's training normalised depth, for the upper bounds (default: %(default)s)",
    )
    parser.add_argument(
        "--predictions",
        metavar="DIR_OR_PATH",
        help="score depth maps that anything made, in place of a model's: a folder of KEY.npy or 16-bit KEY.png, or a "
        "path with {key} or {name} for the image's name, such as 'maps/{name}_log_depth.npy'",
    )
    parser.add_argument(
        "--prediction-form",
        choices=PREDICTION_FORMS,
        help="what the maps of --predictions hold, each up to scale and shift (default: depth)",
    )
    add_report_arguments(parser)
    parser.set_defaults(check=partial(_check_usage, parser))


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exits with a usage error if an argument of a model is given together with predictions."""
    if args.predictions is None:
        if args.prediction_form is not None:
            parser.error("argument --prediction-form: needs --predictions")
        return
    for name in MODEL_ARGUMENTS:
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"argument --{name.replace('_', '-')}: no model is used with --predictions; leave it out")


def evaluate(args: argparse.Namespace) -> int:
    """Runs `depthfm evaluate`: scores a model on a benchmark."""
    import torch

    from ..checkpoints.model_folder import DEPTH_MODELS, load_depth_model, model_fingerprint, resolve_model
    from ..evaluation.data.configs import load_benchmark
    from ..evaluation.data.open_benchmark import open_benchmark
    from ..evaluation.runs.benchmark import run_evaluation
    from ..evaluation.runs.scoring import EvaluationSettings

    settings = EvaluationSettings(
        prediction_settings(args),
        alignment=args.alignment,
        limit=args.limit,
        threads=args.threads,
        protocol=args.protocol,
        depth_normalization=args.depth_normalization,
    )
    sheet = check_report_files(args.output, args.contact_sheet)
    # Errors in the data are found before a network is loaded.
    data = open_benchmark(load_benchmark(args.benchmark), args.root)
    if args.predictions is not None:
        return _evaluate_predictions(args, data, settings, sheet)
    model_folder = resolve_model(find_model(args), args.variant, DEPTH_MODELS)
    for path in (args.output, sheet):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _processes(args.device) as processes:
        device = args.device if processes.num_processes == 1 or args.device != "auto" else str(processes.device)
        pipe = load_depth_model(model_folder, device, getattr(torch, args.dtype), args.variant)
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
            _print_report(report, args.output, sheet)
    return 0


def _print_report(report: Mapping[str, Any], output: Path, sheet: Path) -> None:
    from ..evaluation.runs.protocol_report import format_protocols
    from ..evaluation.runs.report import format_report

    text = format_protocols(report) if "protocols" in report else format_report(report)
    print(f"{text}\n\nwritten to {output}, contact sheet {sheet}")


def _evaluate_predictions(
    args: argparse.Namespace, data: BenchmarkData, settings: EvaluationSettings, sheet: Path
) -> int:
    """Scores depth maps that are there already."""
    from ..evaluation.data.stored_predictions import StoredPredictions
    from ..evaluation.runs.stored_run import evaluate_predictions

    predictions = StoredPredictions(args.predictions, args.prediction_form or "depth", data.keys[: args.limit])
    for path in (args.output, sheet):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _processes("cpu") as processes, closing(Progress(processes.is_main_process)) as progress:
        report = evaluate_predictions(
            data, predictions, settings, args.output, args.predictions, sheet, processes, progress.show
        )
    if processes.is_main_process:
        _print_report(report, args.output, sheet)
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
