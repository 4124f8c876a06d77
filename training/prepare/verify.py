"""Checks prepared shards against the manifest beside them: `python training/prepare/verify.py FOLDER…`.

Every shard named is there, has its checksum and its number of frames; no frame is there twice, no shard is unnamed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from shard_writer import MANIFEST, file_sha256
from tqdm import tqdm


def verify_manifest(folder: Path) -> list[str]:
    """Compares a folder of shards with its manifest.

    Args:
        folder: Holds `manifest.json` and the shards.

    Returns:
        What is wrong, a sentence each; empty if all is well.

    Raises:
        FileNotFoundError: If there is no manifest: the preparation did not come to its end.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the preparation again, it continues where it stopped.")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    problems = []
    seen: dict[str, str] = {}
    for shard in tqdm(manifest["shards"], unit="shard", desc=folder.name):
        file = folder / shard["file"]
        if not file.exists():
            problems.append(f"{file}: missing.")
            continue
        if file.stat().st_size != shard["size"]:
            problems.append(f"{file}: {file.stat().st_size} bytes, not {shard['size']}.")
            continue
        if file_sha256(file) != shard["sha256"]:
            problems.append(f"{file}: its checksum is not the manifest's.")
            continue
        keys = _keys(file)
        if len(keys) != shard["frames"]:
            problems.append(f"{file}: {len(keys)} frames, not {shard['frames']}.")
        problems.extend(f"{file}: frame {key!r} is also in {seen[key]}." for key in keys if key in seen)
        seen.update(dict.fromkeys(keys, shard["file"]))
    named = {shard["file"] for shard in manifest["shards"]}
    problems.extend(f"{file}: not in the manifest." for file in sorted(folder.glob("*.tar")) if file.name not in named)
    return problems


def _keys(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return [name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="folder that a preparation wrote")
    options = parser.parse_args(arguments)
    problems = []
    for folder in options.folders:
        try:
            problems.extend(verify_manifest(folder))
        except FileNotFoundError as error:
            problems.append(str(error))
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print("All shards are as their manifests say.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
