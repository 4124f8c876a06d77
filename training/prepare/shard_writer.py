"""Writes frames as WebDataset shards that survive a kill: every shard is either complete or absent.

A data set is a list of candidates in a fixed order. Candidate i belongs to shard i // shard_size, whatever becomes of
the others, so each shard can be written, or written again, on its own. In the output folder:

    PREFIX-00000.tar …       finished shards, nothing else has this ending
    records/settings.json    what the shards are made with: a later run with other settings is refused
    records/PREFIX-00000.json …  one record a finished shard: size, checksum, frames, what was rejected and why
    manifest.json            the records put together, written when the last shard is finished

A shard is written under another name, synced to disk, recorded, and only then renamed. Nothing written depends on the
time, the user or the number of workers, so that an interrupted run ends with the same bytes as one never stopped.
"""

from __future__ import annotations

import collections
import fcntl
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tqdm import tqdm

MANIFEST = "manifest.json"
RECORDS = "records"
SETTINGS = "settings.json"

# Encoded frames held in memory per worker, so that a slow disk does not fill the memory.
FRAMES_AHEAD_PER_WORKER = 2


class Candidate(Protocol):
    """A frame that may go into a shard."""

    @property
    def key(self) -> str:
        """Name of the frame, unique in the data set, without a dot or a slash."""


@dataclass(frozen=True)
class Sample:
    """The files of one frame as they go into the shard.

    Attributes:
        scene: Scene of the frame, as its json has it.
        files: Content by extension, such as `{"png": …, "depth.png": …, "json": …}`.
        counts: Numbers that the manifest adds up over all frames.
    """

    scene: str
    files: Mapping[str, bytes]
    counts: Mapping[str, int] = field(default_factory=dict)


class FrameRejected(Exception):
    """A frame that does not pass a filter.

    Args:
        reason: Short name that the manifest counts by.
        detail: What was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class UnusableFrame(FrameRejected):
    """A frame whose files cannot be used: stops the run, or counts as rejected where the run says so.

    Args:
        reason: Short name that the manifest counts by.
        root: Folder of the data set: in the message, not in the manifest.
        path: The file at fault, relative to `root`.
        detail: What is wrong with it.
    """

    def __init__(self, reason: str, root: Path, path: Path, detail: str) -> None:
        super().__init__(reason, f"{path.as_posix()}: {detail}")
        self.message = f"{root / path}: {detail}"

    def __str__(self) -> str:
        return self.message


def in_random_order(candidates: Sequence[Candidate], seed: int) -> list[Any]:
    """Shuffles so that neighbours come from many scenes: a streaming reader sees only a window of a shard.

    The order depends on the keys and the seed alone, not on the order given or on a random generator's version.

    Raises:
        ValueError: If there is no candidate, or two have the same key.
    """
    if not candidates:
        raise ValueError("There is no frame to prepare.")
    keys = collections.Counter(candidate.key for candidate in candidates)
    twice = [key for key, count in keys.items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} frames are listed more than once, the first is {twice[0]!r}.")
    return sorted(candidates, key=lambda candidate: hashlib.sha256(f"{seed}:{candidate.key}".encode()).digest())


def write_shards(
    output: Path,
    prefix: str,
    candidates: Sequence[Candidate],
    encode: Callable[[Any], Sample],
    *,
    settings: Mapping[str, Any],
    source: Mapping[str, str],
    versions: Mapping[str, str],
    shard_size: int,
    skip_errors: bool = False,
    num_workers: int = 1,
) -> dict[str, Any]:
    """Writes all shards that `output` does not have yet, then the manifest.

    Args:
        output: Folder of the shards; created where it is missing.
        prefix: Shards are called `PREFIX-00000.tar` and on.
        candidates: All frames, in the order in which they are written; see `in_random_order`.
        encode: Makes the files of a candidate, or raises `FrameRejected`. Called from several threads.
        settings: What the shards depend on. Plain JSON; kept with the shards and compared when a run continues.
        source: Name, version, address and licence of the data set, for the manifest.
        versions: Version of each package that the bytes depend on; kept and compared like `settings`.
        shard_size: Candidates per shard. A shard has fewer frames where some are rejected.
        skip_errors: Whether a `UnusableFrame` counts as a rejected frame. Otherwise it stops the run.
        num_workers: Threads that encode frames.

    Returns:
        The manifest.

    Raises:
        ValueError: If `output` was begun with other settings, holds shards of another origin, if a number is out of
            range or if every frame was rejected.
        BlockingIOError: If another run is writing to `output`.
        UnusableFrame: See `skip_errors`.
        OSError: If the disk is full, for example. Finished shards stay as they are.
    """
    for name, number in (("shard_size", shard_size), ("num_workers", num_workers)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    keys = "\n".join(candidate.key for candidate in candidates)
    settings = {
        **settings,
        "shard_size": shard_size,
        "on_error": "skip" if skip_errors else "stop",
        "frames": hashlib.sha256(keys.encode()).hexdigest(),
    }
    shards = [
        (f"{prefix}-{number:05d}", candidates[start : start + shard_size])
        for number, start in enumerate(range(0, len(candidates), shard_size))
    ]
    records_folder = output / RECORDS
    records_folder.mkdir(parents=True, exist_ok=True)
    with _locked(records_folder / "lock"):
        _check_settings(output, {"settings": settings, "versions": dict(versions)})
        for leftover in (*output.glob(".*.partial"), *records_folder.glob(".*.partial")):
            leftover.unlink()
        records = []
        with (
            ThreadPoolExecutor(num_workers) as workers,
            tqdm(total=len(candidates), unit="frame", desc=prefix) as progress,
        ):
            for name, members in shards:
                record = _finished(output, name)
                if record is None:
                    results = _encode_all(workers, num_workers, encode, members, skip_errors)
                    record = _write_shard(output, name, results, progress)
                else:
                    progress.update(len(members))
                records.append(record)
        manifest = _manifest(records, settings=settings, source=source, versions=versions)
        if not manifest["counts"]["frames"]:
            raise ValueError(
                f"All {len(candidates)} frames were rejected: {manifest['rejected']}. No shard was written."
            )
        _write_atomically(output / MANIFEST, manifest)
    return manifest


def _write_shard(
    output: Path, name: str, results: Iterator[tuple[str, Sample | FrameRejected]], progress: tqdm
) -> dict[str, Any]:
    """Writes one shard and its record; the shard appears under its final name last."""
    final = output / f"{name}.tar"
    partial = output / f".{name}.tar.partial"
    scenes: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    rejected = []
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for key, result in results:
                    if isinstance(result, FrameRejected):
                        rejected.append({"key": key, "reason": result.reason, "detail": result.detail})
                    else:
                        _add_sample(tar, key, result)
                        scenes[result.scene] += 1
                        counts.update(result.counts)
                    progress.update()
            _sync(file)
        frames = sum(scenes.values())
        record = {
            "file": final.name if frames else None,
            "frames": frames,
            "size": partial.stat().st_size if frames else 0,
            "sha256": file_sha256(partial) if frames else None,
            "scenes": dict(sorted(scenes.items())),
            "counts": dict(sorted(counts.items())),
            "rejected": rejected,
        }
        _write_atomically(output / RECORDS / f"{name}.json", record)
        if frames:
            partial.replace(final)
            _sync_folder(output)
    finally:
        partial.unlink(missing_ok=True)
    return record


def _add_sample(tar: tarfile.TarFile, key: str, sample: Sample) -> None:
    if "." in key or "/" in key:
        raise ValueError(f"The frame name {key!r} has a dot or a slash in it: WebDataset ends the name there.")
    for extension, content in sample.files.items():
        # TarInfo's defaults: no time, no user, mode 644.
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def _encode_all(
    workers: ThreadPoolExecutor,
    num_workers: int,
    encode: Callable[[Any], Sample],
    candidates: Sequence[Candidate],
    skip_errors: bool,
) -> Iterator[tuple[str, Sample | FrameRejected]]:
    """Yields key and result of each candidate in order, a few frames ahead of who reads them."""

    def attempt(candidate: Candidate) -> Sample | FrameRejected:
        try:
            return encode(candidate)
        except FrameRejected as rejected:
            if isinstance(rejected, UnusableFrame) and not skip_errors:
                raise
            return rejected

    pending: collections.deque[tuple[str, Future[Sample | FrameRejected]]] = collections.deque()
    try:
        for candidate in candidates:
            pending.append((candidate.key, workers.submit(attempt, candidate)))
            if len(pending) > num_workers * FRAMES_AHEAD_PER_WORKER:
                key, future = pending.popleft()
                yield key, future.result()
        while pending:
            key, future = pending.popleft()
            yield key, future.result()
    finally:
        for _, future in pending:
            future.cancel()


def _finished(output: Path, name: str) -> dict[str, Any] | None:
    """Returns the record of a shard that is on disk in full, else None."""
    path = output / RECORDS / f"{name}.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    shard = output / f"{name}.tar"
    if record["frames"] and (not shard.exists() or shard.stat().st_size != record["size"]):
        return None
    return record


def _check_settings(output: Path, new: dict[str, Any]) -> None:
    """Keeps the settings at the first run; at later ones compares."""
    path = output / RECORDS / SETTINGS
    if not path.exists():
        foreign = sorted(output.glob("*.tar"))
        if foreign:
            raise ValueError(f"--output: {output} already has shards of another origin, such as {foreign[0].name}.")
        _write_atomically(path, new)
        return
    # As JSON gives them back: tuples become lists.
    new = json.loads(json.dumps(new))
    old = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{name} was {old[group].get(name)!r}, is {new[group].get(name)!r}"
        for group in ("settings", "versions")
        for name in sorted(old[group].keys() | new[group].keys())
        if old[group].get(name) != new[group].get(name)
    ]
    if changed:
        raise ValueError(
            f"--output: {output} was begun with other settings ({'; '.join(changed)}). "
            "Go on with the old ones, or choose a new folder."
        )


def _manifest(
    records: Sequence[dict[str, Any]],
    *,
    settings: Mapping[str, Any],
    source: Mapping[str, str],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    scenes: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for record in records:
        scenes.update(record["scenes"])
        counts.update(record["counts"])
    rejected = [frame for record in records for frame in record["rejected"]]
    frames = sum(record["frames"] for record in records)
    return {
        "source": dict(source),
        "settings": dict(settings),
        "versions": dict(versions),
        "counts": {
            "candidates": frames + len(rejected),
            "frames": frames,
            "rejected": len(rejected),
            "scenes": len(scenes),
            **dict(sorted(counts.items())),
        },
        "rejected": dict(sorted(collections.Counter(frame["reason"] for frame in rejected).items())),
        "shards": [
            {name: record[name] for name in ("file", "frames", "size", "sha256")}
            for record in records
            if record["frames"]
        ],
        "scenes": dict(sorted(scenes.items())),
        "rejected_frames": rejected,
    }


def file_sha256(path: Path) -> str:
    """Checksum of a file, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
            _sync(file.buffer)
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Makes a rename last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system drops when the process ends, however it ends.

    `depthfm_diffusers.utils.locks` is not used: these scripts also run where the package is not installed.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"--output: another run is writing to {path.parent.parent}. Wait until it has ended, or choose "
                "another folder."
            ) from error
        yield
