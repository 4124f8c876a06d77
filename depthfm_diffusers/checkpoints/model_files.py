"""The files of a model in diffusers' format: which they are, whether they are complete, their hash."""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..utils.errors import describe_error
from ..utils.files import file_sha256
from .torch_files import check_archive

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
        check_pickled_weights(folder / name)
    check_files(model_files(folder))


def check_pickled_weights(folder: Path) -> None:
    """Checks the weight files of `torch.save` in a folder, where diffusers would load them: without safetensors.

    Raises:
        ValueError: If one is damaged or compressed.
    """
    if not any(folder.glob("*.safetensors")):
        for path in sorted(folder.glob("*.bin")):
            if zipfile.is_zipfile(path):
                check_archive(path, "model file")


def check_files(files: Iterable[Path]) -> None:
    """Checks that JSON files can be parsed, and that safetensors files are as long as they say.

    Raises:
        ValueError: If one is damaged.
    """
    for path in files:
        if path.suffix == ".json":
            read_json(path)
        else:
            tensor_dtypes(path)


def files_fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """Hashes files: SHA-256 of their names, relative to `folder`, and contents, in order; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return digest.hexdigest()


def check_weights(folder: Path, component: torch.nn.Module, variant: str | None) -> None:
    """Checks the weights of a loaded component for what loading lets pass.

    diffusers leaves random weights in place of missing tensors, and takes integers for weights.

    Args:
        folder: The component's folder.
        component: What was loaded from it.
        variant: Part of the names of the weight files that were loaded.

    Raises:
        ValueError: If the files lack tensors or have integers in place of weights, or if weights are not finite.
    """
    files = sorted(folder.glob("*.safetensors"))
    chosen = [path for path in files if variant is not None and f".{variant}" in path.stem]
    chosen = chosen or [path for path in files if "." not in path.stem]
    weights = {_current_name(key): tensor for key, tensor in component.state_dict().items()}
    present = set()
    for path in chosen:
        for key, dtype in tensor_dtypes(path).items():
            name = _current_name(key)
            present.add(name)
            if name in weights and weights[name].is_floating_point() and "F" not in dtype:
                raise ValueError(f"model file {path} is damaged: the weights {key} are stored as integers ({dtype}).")
    missing = sorted(set(weights) - present)
    if chosen and missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"model file {chosen[0]} is incomplete: it lacks {', '.join(missing[:3])}{more}.")
    if bad := not_finite(weights):
        advice = "Load it in another dtype" if weights[bad].dtype == torch.float16 else "Download or copy it again"
        raise ValueError(f"model folder {folder}: the weights {bad} have NaN or infinite values. {advice}.")


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Returns the name of the first tensor that has NaN or infinite values in float32, or `None`."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            # Several times faster than `isfinite`, and NaN is kept. Not every dtype has it.
            half = tensor.dtype in (torch.float16, torch.bfloat16)
            if not all(map(math.isfinite, torch.aminmax(tensor if half else tensor.to(torch.float32)))):
                return name
    return None


def _current_name(key: str) -> str:
    """Returns a tensor's name in today's diffusers: in old autoencoders, projections of attention had other names."""
    return _OLD_PROJECTION.sub(lambda match: _PROJECTIONS[match[1]] + match[2], key)


def tensor_dtypes(path: Path) -> dict[str, str]:
    """Reads the names of the tensors in a safetensors file, with their dtypes as the format names them.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}
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
