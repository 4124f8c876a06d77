"""Opens data sources of any format, and mixes them."""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ...frames import (
    Frame,
    is_pair_folder,
)
from .frame_source import (
    FrameSource,
    ImageSourceConfig,
    SourceConfig,
)
from .pair_frames import PairFrames
from .sampling import SourceIndices
from .table_frames import (
    METADATA_NAMES,
    TableFrames,
    open_image_folder,
    open_parquet,
)
from .tar_frames import TarFrames

__all__ = ["MixedFrames", "SourceConfig", "open_source"]

SUFFIX_FORMATS = {".tar": "webdataset", ".parquet": "parquet"}
SPLIT_NAMES = {
    "validation": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}


def open_source(config: SourceConfig, streaming: bool = False) -> FrameSource:
    """Opens a data source of frames.

    WebDataset shards are read in place. Parquet files are brought into the cache of `datasets`, which follows changes
    of the files. Image folders and pairs are read file by file.

    Args:
        config: What to open.
        streaming: Whether frames of WebDataset shards are to be read nearly in order: the source then has `groups`.
            The other formats have random access only.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If what is there is not of the format, or the format cannot be told, or there is no frame.
    """
    paths = [found for path in config.paths for found in expand(path)]
    kind = _detect(config, paths) if config.format == "auto" else config.format
    if kind in ("webdataset", "parquet"):
        files = files_of_format(paths, kind)
        return (
            TarFrames(config, files, streaming) if kind == "webdataset" else open_parquet(config, files, TableFrames)
        )
    folder = only_folder(config, kind, paths)
    if kind == "pairs":
        return PairFrames(config, folder)
    return open_image_folder(config, folder, metadata_files(folder), TableFrames)


class MixedFrames(Dataset):
    """Several data sources one after another; has what a `FrameSource` has.

    Args:
        sources: At least one.

    Attributes:
        sources: As given.
        scenes: Scene of each frame.
        sizes: Frames of each source.
        weights: Weight of each source.
        source_of: N, int; number of each frame's source.
        groups: N, int, or `None` where every source has random access. A frame of a source that has random access is
            a group of its own.
        has_intrinsics: Whether the camera of every frame is known.

    Raises:
        ValueError: If there is no source, or two share a file.
    """

    def __init__(self, sources: Sequence[FrameSource]) -> None:
        if not sources:
            raise ValueError("No data source was given.")
        seen: set[Path] = set()
        for source in sources:
            for file in {file.resolve() for file in source.files}:
                if file in seen:
                    raise ValueError(f"{file} is in two data sources: its frames would be counted twice.")
                seen.add(file)
        self.sources = list(sources)
        self.sizes = [len(source) for source in sources]
        self.weights = [source.config.weight for source in sources]
        self.scenes = [scene for source in sources for scene in source.scenes]
        self.has_intrinsics = all(source.has_intrinsics for source in sources)
        self.source_of = np.repeat(np.arange(len(sources)), self.sizes)
        self.starts = np.cumsum([0, *self.sizes])
        self.groups = None
        if any(source.groups is not None for source in sources):
            self.groups = self._join_groups()

    @classmethod
    def open(
        cls,
        settings: Iterable[str | dict[str, Any]],
        streaming: bool = False,
        config_class: type[ImageSourceConfig] = SourceConfig,
        open_one: Callable[..., FrameSource] = open_source,
    ) -> MixedFrames:
        """Opens sources from their settings, see `SourceConfig.parse`.

        Plain paths of `.tar` files together are one source, as a shell's pattern gives them; so are `.parquet` files.

        Args:
            settings: A path, or a mapping, per source.
            streaming: See `open_source`.
            config_class: What a setting is read as.
            open_one: Opens a source from a `config_class` and `streaming`.

        Raises:
            TypeError: If a setting is of the wrong type.
            FileNotFoundError: If there is nothing at a path.
            ValueError: If a setting is out of range or unknown, or a source cannot be opened.
        """
        configs: list[ImageSourceConfig] = []
        position: dict[str, int] = {}
        for setting in settings:
            config = config_class.parse(setting)
            suffix = Path(setting).suffix if isinstance(setting, str) else ""
            if suffix not in SUFFIX_FORMATS or Path(setting).is_dir():
                configs.append(config)
            elif suffix not in position:
                position[suffix] = len(configs)
                configs.append(config)
            else:
                paths = (*configs[position[suffix]].paths, setting)
                configs[position[suffix]] = config_class(tuple(dict.fromkeys(paths)))
        return cls([open_one(config, streaming) for config in configs])

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.scenes)

    def __getitem__(self, index: int) -> Frame:
        """Reads and decodes one frame, see `FrameSource`."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Frame {index} of {len(self)}.")
        index %= len(self)
        number = int(self.source_of[index])
        return self.sources[number][index - int(self.starts[number])]

    def source_indices(self, indices: Sequence[int], weighted: bool) -> list[SourceIndices]:
        """The chosen frames of each source that has any of them, for the sampler.

        Args:
            indices: The frames that are used; the sampler is given positions among them.
            weighted: Whether the sources' weights count.
        """
        chosen = np.asarray(indices, dtype=int)
        found = []
        for number, weight in enumerate(self.weights):
            positions = np.flatnonzero(self.source_of[chosen] == number)
            if len(positions) == 0:
                continue
            groups = None if self.groups is None else self.groups[chosen][positions]
            found.append(SourceIndices(positions, weight if weighted else None, groups))
        return found

    def fingerprint(self) -> str:
        """A hash of the content of all sources, in their order."""
        return "-".join(source.fingerprint() for source in self.sources)

    def _join_groups(self) -> np.ndarray:
        joined, first_free = [], 0
        for source in self.sources:
            groups = np.arange(len(source)) if source.groups is None else source.groups.astype(np.int64)
            joined.append(groups + first_free)
            first_free += int(groups.max()) + 1
        return np.concatenate(joined)


def has_weights(settings: Iterable[str | dict[str, Any]]) -> bool:
    """Whether the settings of any source name a weight."""
    return any(isinstance(setting, dict) and "weight" in setting for setting in settings)


def expand(path: str) -> list[Path]:
    """What is at a path, or fits a pattern.

    Raises:
        FileNotFoundError: If nothing does.
    """
    if Path(path).exists():
        return [Path(path)]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise FileNotFoundError(f"Data source {path}: there is no such file or folder.")
    return [Path(name) for name in found]


def only_folder(config: ImageSourceConfig, kind: str, paths: Sequence[Path]) -> Path:
    """The one folder that a format takes.

    Raises:
        ValueError: If there are several paths, or it is a file.
    """
    if len(paths) != 1:
        raise ValueError(f"Data source {config.name}: format {kind} takes one folder, got {len(paths)} paths.")
    if not paths[0].is_dir():
        raise ValueError(f"Data source {config.name}: format {kind} takes a folder, {paths[0]} is a file.")
    return paths[0]


def files_of_format(paths: Sequence[Path], kind: str) -> list[Path]:
    """The shards or Parquet files at the paths, each once.

    Raises:
        FileNotFoundError: If a folder has none.
        ValueError: If a file has another suffix, or a folder has files of several splits.
    """
    suffix = next(s for s, name in SUFFIX_FORMATS.items() if name == kind)
    return list(dict.fromkeys(file for path in paths for file in _files_with_suffix(path, suffix)))


def _detect(config: SourceConfig, paths: Sequence[Path]) -> str:
    """The format of what is at the paths."""
    kinds = {kind for path in paths for kind in _formats_at(path)}
    if len(kinds) != 1:
        found = f"could be any of {sorted(kinds)}" if kinds else "is of no known format"
        raise ValueError(
            f"Data source {config.name} {found}. Known are .tar files (webdataset), .parquet files, folders with "
            "images/ and depth/ (pairs), and folders with a metadata.csv or metadata.jsonl that names the files in "
            "image_file_name and depth_file_name (imagefolder); set format to choose."
        )
    return kinds.pop()


def _formats_at(path: Path) -> set[str]:
    if path.is_file():
        return {SUFFIX_FORMATS[path.suffix]} if path.suffix in SUFFIX_FORMATS else set()
    kinds = {kind for suffix, kind in SUFFIX_FORMATS.items() if _found(path, suffix)}
    metadata = [file for file in path.rglob("metadata.*") if file.name in METADATA_NAMES]
    # The metadata of pairs have no column for the depth.
    if metadata and not (is_pair_folder(path) and not any(map(_names_depth, metadata))):
        kinds.add("imagefolder")
    elif is_pair_folder(path):
        kinds.add("pairs")
    return kinds


def _names_depth(metadata: Path) -> bool:
    if metadata.suffix == ".parquet":
        return True
    with metadata.open(encoding="utf-8-sig") as file:
        first = file.readline()
    try:
        columns = json.loads(first) if metadata.suffix == ".jsonl" else next(csv.reader([first]), [])
    except ValueError:
        return False  # named by whoever reads the whole file
    return any(str(name).endswith("_file_name") for name in columns)


def _found(folder: Path, suffix: str) -> list[Path]:
    files = folder.glob("*.tar") if suffix == ".tar" else folder.rglob("*.parquet")
    return sorted(file for file in files if file.is_file() and file.name not in METADATA_NAMES)


def _files_with_suffix(path: Path, suffix: str) -> list[Path]:
    if not path.is_dir():
        if path.suffix != suffix:
            raise ValueError(f"Data source {path} is not a {suffix} file.")
        return [path]
    files = _found(path, suffix)
    if not files:
        raise FileNotFoundError(f"Data source {path}: the folder has no {suffix} file in it.")
    _refuse_splits(path, files)
    return files


def metadata_files(folder: Path) -> list[Path]:
    """The metadata files in a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If they are of several splits.
    """
    files = sorted(file for file in folder.rglob("metadata.*") if file.name in METADATA_NAMES)
    if not files:
        raise FileNotFoundError(f"Data source {folder}: the folder has none of {', '.join(METADATA_NAMES)} in it.")
    _refuse_splits(folder, files)
    return files


def _refuse_splits(folder: Path, files: Sequence[Path]) -> None:
    """Does not let a test set slip into the training data."""
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
