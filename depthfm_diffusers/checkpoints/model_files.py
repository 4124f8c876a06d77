"""The files of a model in diffusers' format: which they are, whether they are complete, their hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..utils.errors import describe_error
from ..utils.files import file_sha256

REPOSITORY_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")

_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_PROJECTION = re.compile(rf"\b({'|'.join(_PROJECTIONS)})(\.(?:weight|bias))$")


def component_names(index: dict[str, Any]) -> list[str]:
    """Returns the names of the components in the content of a `model_index.json`."""
    return [
        name
        for name, entry in index.items()
        if not name.startswith("_") and isinstance(entry, list) and entry and entry[0] is not None
    ]


def component_folders(folder: Path, index: dict[str, Any]) -> list[Path]:
    """Returns the folders of a pipeline's components; further ControlNets have their own (`controlnet_1`, ...).

    Args:
        folder: The model folder.
        index: Content of its `model_index.json`.
    """
    folders = [folder / name for name in component_names(index)]
    if "controlnet" in index:
        folders += sorted(path for path in folder.glob("controlnet_*") if path.is_dir())
    return folders


def model_files(folder: Path) -> list[Path]:
    """Returns the JSON and safetensors files of a pipeline, in order."""
    index_path = folder / "model_index.json"
    files = [path for part in component_folders(folder, read_json(index_path)) for path in part.iterdir()]
    return sorted([index_path, *weight_and_config_files(files)])


def weight_and_config_files(files: Iterable[Path]) -> list[Path]:
    """Returns the JSON and safetensors files among `files`, in order."""
    return sorted(path for path in files if path.suffix in (".json", ".safetensors"))


def read_model_index(folder: Path, what: str = "model") -> dict[str, Any]:
    """Reads the `model_index.json` of a pipeline's folder.

    Args:
        folder: The folder.
        what: What errors call the pipeline.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{what} {folder}: not a diffusers model folder, {path.name} is missing.")
    index = read_json(path)
    return index if isinstance(index, dict) else {}


def check_component_files(folder: Path, index: dict[str, Any], what: str = "model") -> None:
    """Checks that a pipeline's components have their folders, and that no file in them is damaged.

    Args:
        folder: The pipeline's folder.
        index: Content of its `model_index.json`.
        what: What errors call the pipeline.

    Raises:
        FileNotFoundError: If the folder of a component is missing.
        ValueError: If a JSON or safetensors file is damaged.
    """
    for name in component_names(index):
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"{what} {folder}: the folder {name}/ is missing, which model_index.json names.")
    check_files(model_files(folder))


def check_files(files: Iterable[Path]) -> None:
    """Checks that JSON files can be parsed, and that safetensors files are as long as they say.

    Raises:
        ValueError: If one is damaged.
    """
    for path in files:
        if path.suffix == ".json":
            read_json(path)
        else:
            tensor_names(path)


def files_fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """Hashes files: SHA-256 of their names, relative to `folder`, and contents, in order; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return digest.hexdigest()


def check_no_tensor_is_missing(folder: Path, component: torch.nn.Module, variant: str | None) -> None:
    """Raises if the files of a loaded component lack tensors: diffusers leaves random weights in their place."""
    files = sorted(folder.glob("*.safetensors"))
    chosen = [path for path in files if variant is not None and f".{variant}" in path.stem]
    chosen = chosen or [path for path in files if "." not in path.stem]
    present = {_current_name(key) for path in chosen for key in tensor_names(path)}
    missing = sorted({_current_name(key) for key in component.state_dict()} - present)
    if chosen and missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"model file {chosen[0]} is incomplete: it lacks {', '.join(missing[:3])}{more}.")


def _current_name(key: str) -> str:
    """Returns a tensor's name in today's diffusers: in old autoencoders, projections of attention had other names."""
    return _OLD_PROJECTION.sub(lambda match: _PROJECTIONS[match[1]] + match[2], key)


def tensor_names(path: Path) -> list[str]:
    """Reads the names of the tensors in a safetensors file.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"model file {path} is damaged or incomplete: {describe_error(error)}") from error


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"model file {path} is damaged: {describe_error(error)}") from error
