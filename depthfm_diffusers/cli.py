"""The command `depthfm`."""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NoReturn

from .commands import adherence, bench, compare, complete, convert, evaluate, predict, synthesize
from .commands.terminal import complain
from .loaders.registration import require_diffusers
from .utils.errors import describe_error
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
    if "check" in args:
        args.check(args)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        require_diffusers()
        with nullcontext() if args.verbose else _quiet_libraries():
            return command(args)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except (OSError, ValueError, ImportError, RuntimeError, MemoryError) as error:
        if args.verbose:
            traceback.print_exc()
        complain(f"error: {describe_error(error)}")
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line.

    Each command sets `command` to a function of the parsed arguments. It may set `check` to another, which exits with
    a usage error.
    """
    parser = _Parser(prog="depthfm", description="Depth from single images by flow matching.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (predict, complete, convert, evaluate, compare, synthesize, adherence, bench):
        command.add_parser(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the choice that was probably meant, as Python 3.14's own can."""

    def error(self, message: str) -> NoReturn:
        """Exits with a usage error.

        Args:
            message: What is wrong.
        """
        wrong = re.search(r"invalid choice: '(.+?)' \(choose from (.+)\)", message)
        if wrong:
            import difflib

            for choice in difflib.get_close_matches(wrong[1], re.findall(r"[^', ]+", wrong[2]), n=1):
                message += f"; did you mean {choice}?"
        super().error(message)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silences libraries, whose messages are for programmers; what concerns the user is raised as an error."""
    import diffusers
    import transformers
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    had_progress_bars = [library.is_progress_bar_enabled() for library in libraries]
    shows_downloads = not are_progress_bars_disabled()
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()  # transformers switches these off too, but a download of gigabytes must show one
    try:
        yield
    finally:
        for library, level, had_bars in zip(libraries, levels, had_progress_bars, strict=True):
            library.set_verbosity(level)
            if had_bars:
                library.enable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
