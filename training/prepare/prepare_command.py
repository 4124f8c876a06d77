"""What the commands that prepare a data set have in common: options, order, errors, the summary at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shard_writer import Candidate, FrameRejected, Sample, in_random_order, write_shards


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.required or action.default in (None, False) else super()._get_help_string(action)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every data set has."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for shards and manifest")
    parser.add_argument(
        "--shard_size", type=int, default=1000, metavar="N", help="frames per shard, rejected ones too"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="take only the first N frames of the random order")
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    parser.add_argument(
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do about a missing or unusable file: stop, or skip the frame and count it",
    )
    parser.add_argument("--num_workers", type=int, default=1, metavar="N", help="threads that read and encode frames")


def positive_fraction(text: str) -> float:
    """Parses an option that is a share of the whole.

    Raises:
        argparse.ArgumentTypeError: If it is not between 0 and 1.
    """
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number.") from error
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1.")
    return value


def write_prepared(
    options: argparse.Namespace,
    prefix: str,
    candidates: Sequence[Candidate],
    encode: Callable[[Any], Sample],
    *,
    settings: Mapping[str, Any],
    source: Mapping[str, str],
    packages: Sequence[str],
) -> dict[str, Any]:
    """Writes the shards as the options of `add_output_options` say.

    Args:
        options: Parsed options.
        prefix: How the shards' names begin.
        candidates: All frames, in any order.
        encode: See `shard_writer.write_shards`.
        settings: What the shards depend on beside the common options.
        source: See `shard_writer.write_shards`.
        packages: Packages whose version the bytes may depend on.

    Returns:
        The manifest.

    Raises:
        ValueError: If `--limit` is not positive; otherwise as `shard_writer.write_shards`.
    """
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {options.limit}.")
    ordered = in_random_order(candidates, options.seed)[: options.limit]
    return write_shards(
        options.output,
        prefix,
        ordered,
        encode,
        settings={**settings, "seed": options.seed, "limit": options.limit},
        source=source,
        versions={package: version(package) for package in packages},
        shard_size=options.shard_size,
        skip_errors=options.on_error == "skip",
        num_workers=options.num_workers,
    )


def exit_code(prepare: Callable[[argparse.Namespace], dict[str, Any]], options: argparse.Namespace) -> int:
    """Runs `prepare`; prints the counts of its manifest, or what went wrong, and returns the exit code."""
    try:
        manifest = prepare(options)
    except (FrameRejected, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, OSError):
            print("Finished shards are kept: the same command continues behind them.", file=sys.stderr)
        return 1
    counts = ", ".join(f"{name} {number}" for name, number in manifest["counts"].items())
    print(f"{options.output}: {len(manifest['shards'])} shards; {counts}.")
    for reason, number in manifest["rejected"].items():
        print(f"  rejected, {reason}: {number}")
    return 0
