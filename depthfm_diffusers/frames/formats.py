"""The one place that decides in which format a data source is, and lists its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..utils.folders import expand_pattern, files_below
from .pairs import is_pair_folder
from .rows import read_column_names
from .source_config import ImageSourceConfig

SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet"}
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_NAMES = {
    "validation": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}


def find_source(config: ImageSourceConfig) -> tuple[str, list[Path]]:
    """Decides the format of a data source, and lists what to open.

    Returns:
        The format, and for `webdataset` and `parquet` the files, for other formats one folder.

    Raises:
        FileNotFoundError: If there is nothing at the path, or nothing of the format.
        ValueError: If the format cannot be told, a file is of another format, or a folder has files of several splits.
    """
    paths = [found for path in config.paths for found in _expand(path)]
    kind = _detect(config, paths) if config.format == "auto" else config.format
    if kind in SUFFIXES:
        return kind, list(dict.fromkeys(file for path in paths for file in _files_of_format(path, kind)))
    if len(paths) != 1:
        raise ValueError(f"Data source {config.name}: format {kind} takes one folder, got {len(paths)} paths.")
    if not paths[0].is_dir():
        raise ValueError(f"Data source {config.name}: format {kind} takes a folder, {paths[0]} is a file.")
    return kind, paths


def format_of_file(path: str) -> str | None:
    """Returns the format that the name of a file tells; `None` for a folder and for other names."""
    names = [kind for kind, suffix in SUFFIXES.items() if Path(path).suffix.lower() == suffix]
    return names[0] if names and not Path(path).is_dir() else None


def files_in(folder: Path, kind: str) -> list[Path]:
    """Returns the shards or the Parquet files in a folder, in alphabetical order.

    Parquet files may be in subfolders; shards too, if there is none in the folder itself.
    """
    found = [file for file in files_below(folder) if file.suffix.lower() == SUFFIXES[kind] and not _is_metadata(file)]
    direct = [file for file in found if file.parent == folder]
    return direct if direct and kind == "webdataset" else found


def metadata_in(folder: Path) -> list[Path]:
    """Returns the metadata files of an image folder and its subfolders.

    Raises:
        ValueError: If they are of several splits.
    """
    files = _metadata_files(folder)
    _refuse_splits(folder, files)
    return files


def _expand(path: str) -> list[Path]:
    """Returns what is at a path, or fits a pattern."""
    if Path(path).exists():
        return [Path(path)]
    found = expand_pattern(path)
    if not found:
        raise FileNotFoundError(f"Data source {path}: there is no such file or folder.")
    return found


def _detect(config: ImageSourceConfig, paths: Sequence[Path]) -> str:
    kinds = {kind for path in paths for kind in _formats_at(path)} & set(config.FORMATS)
    if "pairs" not in config.FORMATS:  # captions
        if "webdataset" in kinds:  # img2dataset writes a Parquet file of metadata beside each shard
            return "webdataset"
        kinds = kinds or {"imagefolder"}  # of images alone
    if len(kinds) == 1:
        return kinds.pop()
    known = ".tar files (webdataset), .parquet files, "
    if "pairs" in config.FORMATS:
        known += (
            "folders with images/ and depth/ (pairs), and folders with a metadata.csv or metadata.jsonl that names "
            "the files in image_file_name and depth_file_name (imagefolder)"
        )
    else:
        known += "and folders of images (imagefolder)"
    found = f"could be any of {sorted(kinds)}" if kinds else "is of no known format"
    raise ValueError(f"Data source {config.name} {found}. Known are {known}; set format to choose.")


def _formats_at(path: Path) -> set[str]:
    if path.is_file():
        kind = format_of_file(str(path))
        return {kind} if kind else set()
    kinds = {kind for kind in SUFFIXES if files_in(path, kind)}
    metadata = _metadata_files(path)
    # The metadata of pairs have no column for the depth.
    if metadata and not (is_pair_folder(path) and not any(map(_names_depth, metadata))):
        kinds.add("imagefolder")
    elif is_pair_folder(path):
        kinds.add("pairs")
    return kinds


def _metadata_files(folder: Path) -> list[Path]:
    return [file for file in files_below(folder) if _is_metadata(file)]


def _is_metadata(file: Path) -> bool:
    return file.name.lower() in METADATA_NAMES


def _names_depth(metadata: Path) -> bool:
    if metadata.suffix.lower() == ".parquet":
        return True
    try:
        return any(name.endswith("_file_name") for name in read_column_names(metadata))
    except (ValueError, RecursionError):
        return False  # reported when the whole file is read


def _files_of_format(path: Path, kind: str) -> list[Path]:
    suffix = SUFFIXES[kind]
    if not path.is_dir():
        if path.suffix.lower() != suffix:
            raise ValueError(f"Data source {path} is not a {suffix} file.")
        return [path]
    files = files_in(path, kind)
    if not files:
        raise FileNotFoundError(f"Data source {path}: the folder has no {suffix} file in it.")
    _refuse_splits(path, files)
    return files


def _refuse_splits(folder: Path, files: Sequence[Path]) -> None:
    """Refuses files of several splits, so that no test set is trained on by mistake."""
    splits = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.relative_to(folder).as_posix().lower())
        held_out = [split for split, names in SPLIT_NAMES.items() if set(words) & set(names)]
        splits[held_out[0] if held_out else "train"] = file
    if len(splits) > 1:
        examples = ", ".join(map(str, splits.values()))
        raise ValueError(
            f"Data source {folder} has files of several splits, {sorted(splits)} (such as {examples}): give the files "
            f"to train on, for example as {folder}/train-*."
        )
