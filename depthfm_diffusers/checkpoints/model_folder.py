"""Model folders: finding, checking, hashing, loading and saving them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import get_device

from ..pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ..pretrained.bundled import default_model_path
from ..utils.errors import describe_error
from .model_files import (
    REPOSITORY_NAME,
    check_component_files,
    check_weights,
    component_names,
    files_fingerprint,
    model_files,
    read_model_index,
)

if TYPE_CHECKING:
    from diffusers import MarigoldDepthPipeline

# The classes of pipelines whose folders are understood: everywhere, and where predictions are scored.
DEPTHFM = "DepthFMPipeline"
DEPTH_MODELS = (DEPTHFM, "MarigoldDepthPipeline")
Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


def resolve_model(model: str | None = None, variant: str | None = None, classes: Sequence[str] = (DEPTHFM,)) -> Path:
    """Finds the folder of a model: a given one, the bundled one, or one fetched from the Hub or its cache.

    Args:
        model: A folder, or the name of a Hub repository; `None` is the bundled model.
        variant: Which weight files to fetch from the Hub, `"fp16"` for instance.
        classes: Names of the pipelines that are understood.

    Returns:
        The folder, checked with `check_model_folder`.

    Raises:
        FileNotFoundError: If there is no such folder, and no such repository can be reached.
        ValueError: If the folder is another pipeline's or one of its files is damaged.
    """
    folder = default_model_path() if model is None else Path(model).expanduser()
    if model is not None and not folder.is_dir():
        if folder.exists() or not REPOSITORY_NAME.fullmatch(model):
            hint = " It is a file: convert it with `depthfm convert`." if folder.is_file() else ""
            raise FileNotFoundError(f"model {model}: no such folder (nor is it the name of a Hub repository).{hint}")
        try:
            folder = Path(DepthFMPipeline.download(model, variant=variant))
        except Exception as error:  # huggingface_hub and its HTTP client have no common base class
            raise FileNotFoundError(
                f"model {model}: there is no such folder, and the Hub repository could not be fetched: "
                f"{describe_error(error.__cause__ or error)}"  # diffusers names the Hub's own error as the cause
            ) from error
    check_model_folder(folder, classes)
    return folder


def check_model_folder(folder: Path, classes: Sequence[str] = (DEPTHFM,)) -> None:
    """Checks a model folder for common damage, so that the error names the file at fault.

    Only `model_index.json` and the folders of the components that it names are checked.

    Args:
        folder: A folder as written by a pipeline's `save_pretrained`.
        classes: Names of the pipelines that are understood.

    Raises:
        FileNotFoundError: If `model_index.json` or the folder of a component is missing.
        ValueError: If the model is of another kind, or a JSON or safetensors file in it is damaged.
    """
    index = read_model_index(folder)
    class_name = index.get("_class_name")
    if class_name not in classes:
        understood = " or ".join(map(repr, classes))
        raise ValueError(
            f"model {folder}: model_index.json says {class_name!r}, not {understood}: folders of other classes are "
            "not understood here. `depthfm convert` makes such a folder of the DepthFM authors' weights."
        )
    check_component_files(folder, index)


def model_fingerprint(folder: Path) -> str:
    """Hashes a model: SHA-256 of the names and contents of its JSON and safetensors files, in order.

    Other files in the folder, such as those that training leaves there, do not count.

    Args:
        folder: The model folder.

    Returns:
        64 hexadecimal digits.
    """
    return files_fingerprint(folder, model_files(folder))


def load_pipeline(
    folder: Path, device: str = "auto", dtype: torch.dtype = torch.float32, variant: str | None = None
) -> DepthFMPipeline:
    """Loads a DepthFM model from a folder, quietly and without any network.

    Args:
        folder: The model folder.
        device: Where to run, as torch names it; `"auto"` is the accelerator if there is one.
        dtype: Precision to compute in, whatever that of the files.
        variant: Which weight files to load, `"fp16"` for `*.fp16.safetensors`.

    Returns:
        The pipeline, on the device.

    Raises:
        ValueError: If the model cannot be loaded, its weight files lack tensors or have values that are not finite,
            or the device cannot be used.
    """
    return move_to_device(_load(DepthFMPipeline, folder, dtype, variant), device)


def load_depth_model(
    folder: Path, device: str = "auto", dtype: torch.dtype = torch.float32, variant: str | None = None
) -> DepthFMPipeline | MarigoldDepthPipeline:
    """Loads a model of a class in `DEPTH_MODELS` from a folder, quietly and without any network.

    Args:
        folder: The model folder, checked with these classes.
        device: See `load_pipeline`.
        dtype: See `load_pipeline`.
        variant: See `load_pipeline`.

    Returns:
        The pipeline, on the device.

    Raises:
        ValueError: See `load_pipeline`. A Marigold model without text encoder or tokenizer cannot be loaded.
    """
    if read_model_index(folder).get("_class_name") == DEPTHFM:
        return load_pipeline(folder, device, dtype, variant)
    from diffusers import MarigoldDepthPipeline

    return move_to_device(_load(MarigoldDepthPipeline, folder, dtype, variant), device)


def _load(pipeline_class: type[Pipeline], folder: Path, dtype: torch.dtype, variant: str | None) -> Pipeline:
    try:
        pipe = pipeline_class.from_pretrained(folder, dtype=dtype, variant=variant, local_files_only=True)
    except Exception as error:  # loading runs through four libraries, each with exceptions of its own
        raise ValueError(f"model {folder} cannot be loaded: {describe_error(error)}") from error
    for name in component_names(read_model_index(folder)):
        component = getattr(pipe, name)
        if isinstance(component, torch.nn.Module):
            check_weights(folder / name, component, variant)
    return pipe


def move_to_device(pipe: Pipeline, device: str) -> Pipeline:
    """Moves a pipeline to a device.

    Args:
        pipe: The pipeline.
        device: Where to, as torch names it; `"auto"` is the accelerator if there is one.

    Returns:
        The same pipeline.

    Raises:
        ValueError: If the device cannot be used.
    """
    target = get_device() if device == "auto" else device
    try:
        return pipe.to(target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {target!r} cannot be used: {describe_error(error)}") from error


def save_pipeline(pipe: DepthFMPipeline, folder: Path, variant: str | None = None) -> None:
    """Saves a pipeline for others: without paths of this machine, and with weight files that everybody may read.

    Args:
        pipe: The pipeline.
        folder: The folder to write; files of the same names are replaced.
        variant: Part of the names of the weight files, `"fp16"` for `*.fp16.safetensors`.
    """
    for loaded in (pipe, *pipe.components.values()):
        # diffusers records the path that something was loaded from.
        if loaded is not None and loaded.config.get("_name_or_path"):
            loaded.register_to_config(_name_or_path="")
    pipe.save_pretrained(folder, variant=variant)
    # safetensors writes files that only their owner may read.
    mode = (folder / "model_index.json").stat().st_mode & 0o777
    for name in pipe.components:
        for path in (folder / name).glob("*.safetensors"):
            path.chmod(mode)


def halve_weights(pipe: DepthFMPipeline) -> None:
    """Casts the weights to float16 in place.

    Raises:
        ValueError: If a weight is beyond the range of float16; it would become infinite.
    """
    for name, component in pipe.components.items():
        if not isinstance(component, torch.nn.Module):
            continue
        component.half()
        for key, tensor in component.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"the tensor {key} of the {name} has values that float16 cannot hold.")
