"""The command `depthfm`."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import diffusers
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

from .commands import (
    adherence,
    bench,
    convert,
    evaluate,
    predict,
    synthesize,
)
from .commands.terminal import complain
from .utils.version import __version__

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
        complain("interrupted")
        return INTERRUPTED
    except (OSError, ValueError, ImportError, RuntimeError, MemoryError) as error:
        if args.verbose:
            traceback.print_exc()
        complain(f"error: {_message(error)}")
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; each subcommand sets `command` to a function of the parsed arguments."""
    parser = argparse.ArgumentParser(prog="depthfm", description="Depth from single images by flow matching.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (predict, convert, evaluate, synthesize, adherence, bench):
        command.add_parser(commands)
    return parser


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silences messages that are for who writes programs; what concerns who runs this one is raised as an error."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    had_progress_bars = [library.is_progress_bar_enabled() for library in libraries]
    shows_downloads = not are_progress_bars_disabled()
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()  # transformers switches these off too, and gigabytes take their time
    try:
        yield
    finally:
        for library, level, had_bars in zip(libraries, levels, had_progress_bars, strict=True):
            library.set_verbosity(level)
            if had_bars:
                library.enable_progress_bar()


def _message(error: Exception) -> str:
    """What an exception says, without Python's `[Errno 2]`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
