"""The command `depthfm`."""

from __future__ import annotations

import argparse
import errno
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import PartialState
from diffusers.utils.torch_utils import get_device
from tqdm import tqdm

from . import __version__, convert_checkpoint
from .benchmarking import format_table, run_benchmark
from .evaluation.alignment import ALIGNMENT_METHODS, ALIGNMENT_SPACES
from .evaluation.benchmark import run_evaluation
from .evaluation.configs import benchmark_names, load_benchmark
from .evaluation.datasets import open_benchmark
from .evaluation.report import format_report
from .evaluation.scoring import EvaluationSettings
from .export import save_json
from .image_processing import load_image
from .input_files import InputFailure, collect_inputs
from .model_folder import load_pipeline, model_fingerprint, resolve_model
from .prediction_files import PredictionFolder, PredictionSettings, describe_run, predict_files

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0 if everything asked for was done, 1 if not, 130 if interrupted. Wrong usage exits with 2.
    """
    args = build_parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        with nullcontext() if args.verbose else _quiet_libraries():
            return command(args)
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except (OSError, ValueError, ImportError, RuntimeError, MemoryError) as error:
        if args.verbose:
            traceback.print_exc()
        _complain(f"error: {_message(error)}")
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; each subcommand sets `command` to a function of the parsed arguments."""
    parser = argparse.ArgumentParser(prog="depthfm", description="Depth from single images by flow matching.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_convert(commands)
    _add_evaluate(commands)
    _add_bench(commands)
    return parser


def predict(args: argparse.Namespace) -> int:
    """`depthfm predict`: depth maps of image files."""
    settings = PredictionSettings(
        num_inference_steps=args.steps,
        ensemble_size=args.ensemble,
        seed=args.seed,
        processing_resolution=args.processing_resolution,
        batch_size=args.batch_size,
        colormap=args.colormap,
    )
    folder = PredictionFolder(args.output)
    try:
        inputs, failures = collect_inputs(args.images, skip=folder.results())
        for failure in failures:
            _complain_about(failure)
        total = len(inputs) + len(failures)
        written = 0
        for failure in tqdm(
            _predictions(args, settings, inputs, folder), total=len(inputs), unit="image", disable=None
        ):
            if failure is None:
                written += 1
            else:
                _complain_about(failure)
    finally:
        folder.close()
    print(f"{written} of {total} inputs written to {args.output}")
    return 0 if written == total else 1


def _predictions(
    args: argparse.Namespace, settings: PredictionSettings, inputs: list[Path], folder: PredictionFolder
) -> Iterator[InputFailure | None]:
    """Loads the model, if there is anything to predict, and predicts."""
    if not inputs:
        return
    model_folder = resolve_model(args.model, args.variant)
    pipe = load_pipeline(model_folder, args.device, DTYPES[args.dtype], args.variant)
    pipe.set_progress_bar_config(disable=True)
    run = describe_run(pipe, settings, args.model or model_folder.name, model_fingerprint(model_folder))
    folder.begin_run({**run, "variant": args.variant}, inputs)
    yield from predict_files(pipe, inputs, folder, settings)


def convert(args: argparse.Namespace) -> int:
    """`depthfm convert`: an authors' checkpoint to a diffusers folder."""
    folder = convert_checkpoint(
        args.checkpoint,
        args.vae,
        args.output,
        rescale_self_attention=args.rescale_self_attention,
        trust_pickle=args.trust_pickle,
        variant=args.variant,
        overwrite=args.overwrite,
    )
    print(f"written to {folder}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """`depthfm evaluate`: scores of a model on a benchmark."""
    settings = EvaluationSettings(
        num_inference_steps=args.steps,
        ensemble_size=args.ensemble,
        seed=args.seed,
        processing_resolution=args.processing_resolution,
        batch_size=args.batch_size,
        alignment=args.alignment,
        alignment_method=args.alignment_method,
        limit=args.limit,
        threads=args.threads,
    )
    if args.output.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file to write", str(args.output))
    if args.output.suffix != ".json" and not args.output.is_dir():
        # Reports of one name but for the suffix would share their contact sheet, and what is kept to go on with.
        raise ValueError(f"--output {args.output}: the report is a JSON file, its name must end in .json.")
    sheet = args.output.with_suffix(".png") if args.contact_sheet is None else args.contact_sheet
    if sheet.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file to write", str(sheet))
    if sheet == args.output:
        raise ValueError(f"--output and --contact-sheet are both {sheet}: give them different names.")
    # All that can be wrong with the data is found before a network is loaded.
    data = open_benchmark(load_benchmark(args.benchmark), args.root)
    model_folder = resolve_model(args.model, args.variant)
    for path in (args.output, sheet):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _processes(args.device) as processes:
        device = args.device if processes.num_processes == 1 or args.device != "auto" else str(processes.device)
        pipe = load_pipeline(model_folder, device, DTYPES[args.dtype], args.variant)
        pipe.set_progress_bar_config(disable=True)
        with closing(_Progress(processes.is_main_process)) as progress:
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
        for name in benchmark_names():
            print(f"{name.ljust(16)}{load_benchmark(name).title}")
        parser.exit()


@contextmanager
def _processes(device: str) -> Iterator[PartialState]:
    """The processes that a launcher has started, this one among them; parted from at the end."""
    on_cpu = (get_device() if device == "auto" else device).startswith("cpu")
    # Whoever is done early waits for the others for as long as it takes.
    processes = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
    try:
        yield processes
    finally:
        processes.destroy_process_group()


class _Progress:
    """A progress bar that begins where a run goes on; what was done before does not count as speed.

    Args:
        shown: Whether there is one, where stderr is a terminal.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar: tqdm | None = None

    def show(self, done: int, total: int) -> None:
        """Moves the bar to `done`."""
        if self._bar is None:
            self._bar = tqdm(total=total, initial=done, unit="image", disable=None if self._shown else True)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leaves the bar where it is."""
        if self._bar is not None:
            self._bar.close()


def bench(args: argparse.Namespace) -> int:
    """`depthfm bench`: times and memory, beside Marigold's on the same components."""
    model_folder = resolve_model(args.model, args.variant)
    pipe = load_pipeline(model_folder, args.device, DTYPES[args.dtype], args.variant)
    report = run_benchmark(
        pipe,
        image=None if args.image is None else load_image(args.image),
        steps=args.steps,
        marigold_steps=args.marigold_steps,
        repeats=args.repeats,
        processing_resolution=args.processing_resolution,
    )
    report["model"] = args.model or model_folder.name
    print(format_table(report))
    if args.output is not None:
        save_json(args.output, report)
    return 0


def _add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands,
        "predict",
        predict,
        "Predict the depth of image files.",
        "Writes, for each input, NAME_depth.npy (float32 in [0, 1], 0 near, 1 far), NAME_log_depth.npy (the network's "
        "log depth), NAME_depth.png (16 bit) and NAME_color.png, and one metadata.json with what is needed to repeat "
        "them. NAME is the input's name without suffix; where names collide, NAME_SUFFIX or NAME_2, NAME_3, ... "
        "A result is replaced only by a later one for the same file, and nothing else that is in the output folder "
        "is overwritten. A bad input is named on stderr and does not stop the others; the exit status is 0 only if "
        "every input was written.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image file, folder (the images directly in it) or quoted pattern ('photos/**/*.jpg')",
    )
    parser.add_argument("--output", "-o", required=True, type=Path, metavar="DIR", help="folder for the results")
    _add_model_arguments(parser)
    parser.add_argument(
        "--steps", type=_positive, metavar="N", help="steps from image to depth (default: the model's)"
    )
    parser.add_argument("--ensemble", type=_positive, default=1, metavar="N", help="members to average (default: 1)")
    parser.add_argument(
        "--seed", type=_not_negative, default=0, metavar="N", help="seed of each image's noise (default: 0)"
    )
    parser.add_argument(
        "--batch-size", type=_positive, default=1, metavar="N", help="members computed at once (default: 1)"
    )
    parser.add_argument(
        "--colormap", default="Spectral", metavar="NAME", help="matplotlib's, for NAME_color.png (default: Spectral)"
    )


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands,
        "convert",
        convert,
        "Convert a checkpoint of the DepthFM authors.",
        "Writes a complete diffusers folder (safetensors), which needs nothing else to run. An interrupted conversion "
        "leaves nothing that looks finished.",
    )
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="CKPT", help="the authors' file")
    parser.add_argument(
        "--vae",
        required=True,
        type=Path,
        metavar="PATH",
        help="folder of the autoencoder in diffusers' format, or a Stable Diffusion folder that has one in vae/",
    )
    parser.add_argument("--output", "-o", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--rescale-self-attention",
        action="store_true",
        help="scale self-attention as the authors' code does without xformers (default: off; can be switched at load)",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="unpickle without restriction, which can run any code in the file (default: off)",
    )
    parser.add_argument(
        "--variant", choices=["fp16"], help="also write the weights in float16 (default: float32 only)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier model folder at --output (default: off)"
    )


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands,
        "evaluate",
        evaluate,
        "Score a model on a benchmark, or on a folder of your own images with their depth.",
        "Writes a JSON report with the scores of every image, their means with intervals, every setting and version, "
        "and a picture of the best, the median and the worst images. Prints the means, with those of the true depth "
        "sent through the model's way of representing depth, for comparison. If stopped, the same command goes on "
        "where it was. Several processes share the work: `accelerate launch --multi_gpu --num_processes N -m "
        "depthfm_diffusers.cli evaluate ...`. See docs/evaluate.md.",
    )
    parser.add_argument(
        "--benchmark", required=True, metavar="NAME_OR_TOML", help="name from --list, or a .toml file of your own"
    )
    parser.add_argument("--root", required=True, type=Path, metavar="DIR", help="where its data are")
    parser.add_argument("--output", "-o", required=True, type=Path, metavar="FILE.json", help="report to write")
    parser.add_argument("--list", action=_ListBenchmarks, nargs=0, help="print the benchmarks and exit")
    _add_model_arguments(parser)
    parser.add_argument(
        "--steps", type=_positive, metavar="N", help="steps from image to depth (default: the model's)"
    )
    parser.add_argument(
        "--ensemble",
        type=_positive,
        default=1,
        metavar="N",
        help="members to average, whose spread is scored from 2 on (default: 1)",
    )
    parser.add_argument(
        "--seed", type=_not_negative, default=0, metavar="N", help="seed of each image's noise (default: 0)"
    )
    parser.add_argument(
        "--batch-size", type=_positive, default=1, metavar="N", help="members computed at once (default: 1)"
    )
    parser.add_argument(
        "--alignment", choices=ALIGNMENT_SPACES, help="space of the alignment to the truth (default: the benchmark's)"
    )
    parser.add_argument(
        "--alignment-method", choices=ALIGNMENT_METHODS, help="how it is aligned (default: the benchmark's)"
    )
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N images (default: all)")
    parser.add_argument(
        "--threads",
        type=_positive,
        default=1,
        metavar="N",
        help="CPU threads of each process; another number changes the last digits of scores (default: 1)",
    )
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="FILE.png", help="picture to write (default: --output with .png)"
    )


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands,
        "bench",
        bench,
        "Time a model, beside Marigold's pipeline on the same components.",
        "Measures encoding, each network evaluation, decoding, the whole call and peak memory, for this pipeline and "
        "for diffusers' MarigoldDepthPipeline built on the same UNet and autoencoder with DDIM steps. All are "
        "measured in one process, in turn, and medians over the repeats are printed.",
    )
    _add_model_arguments(parser)
    parser.add_argument("--image", type=Path, metavar="FILE", help="image to run on (default: 640x480 of noise)")
    parser.add_argument(
        "--steps", type=_positive, nargs="+", default=[1, 2], metavar="N", help="steps of DepthFM (default: 1 2)"
    )
    parser.add_argument(
        "--marigold-steps",
        type=_positive,
        nargs="+",
        default=[1, 4, 10],
        metavar="N",
        help="DDIM steps of Marigold (default: 1 4 10)",
    )
    parser.add_argument("--repeats", type=_positive, default=5, metavar="N", help="measurements of each (default: 5)")
    parser.add_argument("--output", "-o", type=Path, metavar="FILE", help="write the figures as JSON, too")


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary} {description}")
    parser.add_argument("--verbose", action="store_true", help="library messages and tracebacks (default: off)")
    parser.set_defaults(command=function)
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="DIR_OR_REPO", help="model folder or Hub repository (default: the bundled depthfm-tiny)"
    )
    parser.add_argument(
        "--variant", metavar="NAME", help="weight files to load, such as fp16 (default: those without)"
    )
    parser.add_argument("--device", default="auto", help="as torch names it (default: auto, an accelerator if any)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="to compute in (default: float32)")
    parser.add_argument(
        "--processing-resolution",
        type=_not_negative,
        metavar="N",
        help="longer side in pixels that the network sees, 0 for the image's own (default: the model's)",
    )


def _positive(text: str) -> int:
    return _integer(text, 1)


def _not_negative(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, lowest: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = lowest - 1
    if value < lowest:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {lowest}, got {text!r}")
    return value


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silences messages that are for who writes programs; what concerns who runs this one is raised as an error."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    had_progress_bars = diffusers.utils.logging.is_progress_bar_enabled()
    for library in libraries:
        library.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        if had_progress_bars:
            diffusers.utils.logging.enable_progress_bar()


def _message(error: Exception) -> str:
    """What an exception says, without Python's `[Errno 2]`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _complain_about(failure: InputFailure) -> None:
    _complain(f"{failure.name}: {failure.reason}")


def _complain(message: str) -> None:
    """Prints on stderr, beside a progress bar if there is one."""
    tqdm.write(f"depthfm: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
