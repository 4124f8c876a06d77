"""Finding, checking, describing and loading the model that a command is to run."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.torch_utils import get_device
from safetensors import SafetensorError, safe_open

from .hub import default_model_path
from .pipeline_depthfm import DepthFMPipeline

_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_PROJECTION = re.compile(rf"\b({'|'.join(_PROJECTIONS)})(\.(?:weight|bias))$")

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def resolve_model(model: str | None = None, variant: str | None = None) -> Path:
    """The folder of a model: given, bundled, or fetched from the Hub (or its cache).

    Args:
        model: A folder, or the name of a Hub repository; `None` is the bundled model.
        variant: Which weight files to fetch from the Hub, `"fp16"` for instance.

    Returns:
        The folder, checked with `check_model_folder`.

    Raises:
        FileNotFoundError: If there is no such folder, and no such repository can be reached.
        ValueError: If the folder is not a DepthFM model or one of its files is damaged.
    """
    folder = default_model_path() if model is None else Path(model).expanduser()
    if model is not None and not folder.is_dir():
        if folder.exists() or not _REPOSITORY.fullmatch(model):
            raise FileNotFoundError(f"model {model}: no such folder (nor is it the name of a Hub repository).")
        try:
            folder = Path(DepthFMPipeline.download(model, variant=variant))
        except Exception as error:  # huggingface_hub and its HTTP client have no common base class
            raise FileNotFoundError(
                f"model {model}: there is no such folder, and the Hub repository could not be fetched: "
                f"{_first_line(error.__cause__ or error)}"  # diffusers names the Hub's own error as the cause
            ) from error
    check_model_folder(folder)
    return folder


def check_model_folder(folder: Path) -> None:
    """Looks for what commonly goes wrong with a model folder, to name the file at fault.

    Only `model_index.json` and the folders of the components that it names are looked at.

    Args:
        folder: A folder as written by `DepthFMPipeline.save_pretrained`.

    Raises:
        FileNotFoundError: If `model_index.json` or the folder of a component is missing.
        ValueError: If the model is of another kind, or a JSON or safetensors file in it is damaged.
    """
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise FileNotFoundError(f"model {folder}: not a diffusers model folder, {index_path.name} is missing.")
    index = _read_json(index_path)
    class_name = index.get("_class_name") if isinstance(index, dict) else None
    if class_name != "DepthFMPipeline":
        raise ValueError(
            f"model {folder}: {index_path.name} says {class_name!r}, not 'DepthFMPipeline'. The authors' checkpoints "
            "are made into such folders by `depthfm convert`."
        )
    for name in _component_names(index):
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"model {folder}: the folder {name}/ is missing, which {index_path.name} names.")
    for path in _model_files(folder):
        if path.suffix == ".json":
            _read_json(path)
        else:
            _tensor_names(path)


def model_fingerprint(folder: Path) -> str:
    """SHA-256 of what a model says: over the names and contents of its JSON and safetensors files, in order.

    Files that are not the model's, as training leaves them beside it, are left out.

    Args:
        folder: The model folder.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in _model_files(folder):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{content}  {path.relative_to(folder).as_posix()}\n".encode())
    return digest.hexdigest()


def load_pipeline(
    folder: Path, device: str = "auto", dtype: torch.dtype = torch.float32, variant: str | None = None
) -> DepthFMPipeline:
    """Loads a DepthFM model from a folder, quietly and without any network.

    Args:
        folder: The model folder.
        device: Where to run, as torch names it; `"auto"` is the accelerator if there is one.
        dtype: What to compute in, whatever the files hold.
        variant: Which weight files to load, `"fp16"` for `*.fp16.safetensors`.

    Returns:
        The pipeline, on the device.

    Raises:
        ValueError: If the model cannot be loaded, its weight files lack tensors, or the device cannot be used; the
            message says why.
    """
    try:
        pipe = DepthFMPipeline.from_pretrained(folder, dtype=dtype, variant=variant, local_files_only=True)
    except Exception as error:  # loading runs through four libraries, each with exceptions of its own
        raise ValueError(f"model {folder} cannot be loaded: {_first_line(error)}") from error
    for name in _component_names(_read_json(folder / "model_index.json")):
        component = getattr(pipe, name)
        if isinstance(component, torch.nn.Module):
            _check_no_tensor_is_missing(folder / name, component, variant)
    target = get_device() if device == "auto" else device
    try:
        return pipe.to(target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {target!r} cannot be used: {_first_line(error)}") from error


def save_pipeline(pipe: DepthFMPipeline, folder: Path, variant: str | None = None) -> None:
    """Saves a pipeline as a folder to be passed on: without paths of this machine, with weights that others can read.

    Args:
        pipe: The pipeline.
        folder: Where to; files of the same names are replaced.
        variant: Part of the names of the weight files, `"fp16"` for `*.fp16.safetensors`.
    """
    for loaded in (pipe, pipe.unet, pipe.vae, pipe.prompt_embedding):
        # diffusers notes where something was loaded from.
        if loaded.config.get("_name_or_path"):
            loaded.register_to_config(_name_or_path="")
    pipe.save_pretrained(folder, variant=variant)
    # safetensors writes files that only their owner can read.
    mode = (folder / "model_index.json").stat().st_mode & 0o777
    for name in pipe.components:
        for path in (folder / name).glob("*.safetensors"):
            path.chmod(mode)


def halve_weights(pipe: DepthFMPipeline) -> None:
    """Casts the weights to float16 in place.

    Raises:
        ValueError: If one does not fit, instead of an infinite weight.
    """
    for name in ("unet", "vae", "prompt_embedding"):
        component = getattr(pipe, name)
        component.half()
        for key, tensor in component.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"the tensor {key} of the {name} has values that float16 cannot hold.")


def _component_names(index: dict[str, Any]) -> list[str]:
    """Names of the components in the content of a `model_index.json`."""
    return [
        name
        for name, entry in index.items()
        if not name.startswith("_") and isinstance(entry, list) and entry and entry[0] is not None
    ]


def _model_files(folder: Path) -> list[Path]:
    """The JSON and safetensors files that a model consists of, in order."""
    index_path = folder / "model_index.json"
    files = [path for name in _component_names(_read_json(index_path)) for path in (folder / name).iterdir()]
    return sorted([index_path, *(path for path in files if path.suffix in (".json", ".safetensors"))])


def _check_no_tensor_is_missing(folder: Path, component: torch.nn.Module, variant: str | None) -> None:
    """Raises if the files of a loaded component lack tensors: diffusers leaves random weights in their place."""
    files = sorted(folder.glob("*.safetensors"))
    chosen = [path for path in files if variant is not None and f".{variant}" in path.stem]
    chosen = chosen or [path for path in files if "." not in path.stem]
    present = {_current_name(key) for path in chosen for key in _tensor_names(path)}
    missing = sorted({_current_name(key) for key in component.state_dict()} - present)
    if chosen and missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"model file {chosen[0]} is incomplete: it lacks {', '.join(missing[:3])}{more}.")


def _current_name(key: str) -> str:
    """A tensor's name in today's diffusers: older autoencoders name the projections of their attention otherwise."""
    return _OLD_PROJECTION.sub(lambda match: _PROJECTIONS[match[1]] + match[2], key)


def _tensor_names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"model file {path} is damaged or incomplete: {_first_line(error)}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"model file {path} is damaged: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
