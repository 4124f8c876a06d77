"""Finding, checking, describing and loading the models of a DepthFM ControlNet pipeline.

These are Stable Diffusion, one or several ControlNets and a DepthFM model, each a folder or a Hub repository; or one
saved pipeline that has them all. All that configuration files say is checked before weights are read. Weights are read
from safetensors files only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ControlNetModel, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.utils.torch_utils import get_device
from huggingface_hub import snapshot_download

from ..checkpoints.model_files import (
    REPOSITORY_NAME,
    check_component_files,
    check_files,
    check_weights,
    component_folders,
    component_names,
    files_fingerprint,
    read_json,
    read_model_index,
    weight_and_config_files,
)
from ..checkpoints.model_folder import load_pipeline, model_fingerprint, move_to_device, resolve_model
from ..pipelines.depthfm_controlnet.controlnet_checks import text_width
from ..pipelines.depthfm_controlnet.pipeline_depthfm_controlnet import DepthFMControlNetPipeline
from ..pipelines.depthfm_controlnet.pipeline_depthfm_controlnet_img2img import DepthFMControlNetImg2ImgPipeline
from ..pipelines.depthfm_controlnet.pipeline_depthfm_controlnet_inpaint import DepthFMControlNetInpaintPipeline
from ..utils.errors import describe_error
from ..utils.folders import is_junk

Pipeline = TypeVar(
    "Pipeline", DepthFMControlNetPipeline, DepthFMControlNetImg2ImgPipeline, DepthFMControlNetInpaintPipeline
)

_KINDS = ("", "Img2Img", "Inpaint")
# Pipelines of diffusers whose folders have the components of a Stable Diffusion 1.x or 2.x.
_BASES = {f"StableDiffusion{part}{kind}Pipeline" for part in ("", "ControlNet") for kind in _KINDS}
_COMPLETE = {f"DepthFMControlNet{kind}Pipeline" for kind in _KINDS}
_WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class SynthesisFolders:
    """The folders of the models, found and checked.

    Attributes:
        base: Stable Diffusion; or a saved pipeline that also has a ControlNet and a depth estimator.
        controlnets: The ControlNets; empty if those of `base` are used.
        depth_model: The DepthFM model; `None` if that of `base` is used.
    """

    base: Path
    controlnets: tuple[Path, ...]
    depth_model: Path | None

    def describe(self) -> dict[str, Any]:
        """Describes the models for a record: their names, and SHA-256 of their files, all of which are read."""
        described: dict[str, Any] = {"base": {"name": self.base.name, "sha256": model_fingerprint(self.base)}}
        if self.controlnets:
            described["controlnets"] = [
                {"name": folder.name, "sha256": files_fingerprint(folder, _controlnet_files(folder))}
                for folder in self.controlnets
            ]
        if self.depth_model is not None:
            described["depth_model"] = {
                "name": self.depth_model.name,
                "sha256": model_fingerprint(self.depth_model),
            }
        return described


def load_synthesis_pipeline(
    cls: type[Pipeline],
    base: str,
    controlnets: Sequence[str] | None = None,
    depth_model: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
) -> Pipeline:
    """Finds, checks and loads the models of a DepthFM ControlNet pipeline.

    Args:
        cls: The class of the pipeline: one of the three DepthFM ControlNet pipelines.
        base: Folder or Hub repository of a Stable Diffusion 1.x or 2.x (with or without ControlNet), or of a saved
            DepthFM ControlNet pipeline of any of the three classes. Its safety checker, if it has one, is kept.
        controlnets: Folders or Hub repositories of depth ControlNets; `None` to use that of `base`.
        depth_model: Folder or Hub repository of a DepthFM model; `None` to use that of `base`, or the bundled one if
            it has none.
        device: Where to run, as torch names it; `"auto"` is the accelerator if there is one.
        dtype: What to compute in, whatever the files hold.
        variant: Which weight files to load, `"fp16"` for `*.fp16.safetensors`. At least one of the models must have
            such files; of the others, those without a variant are loaded.

    Returns:
        The pipeline, on the device.

    Raises:
        FileNotFoundError: If there is no such folder, no such repository can be reached, or files are missing.
        ValueError: If a model is damaged or of another kind than needed, models do not fit together, there is no
            ControlNet, or the device cannot be used. The message says which and why.
    """
    folders = resolve_synthesis_models(base, controlnets, depth_model, variant)
    return load_synthesis_folders(cls, folders, device, dtype, variant)


def resolve_synthesis_models(
    base: str, controlnets: Sequence[str] | None = None, depth_model: str | None = None, variant: str | None = None
) -> SynthesisFolders:
    """Finds the folders of models, or fetches them from the Hub, and checks their files.

    This is the first half of `load_synthesis_pipeline`, which describes the arguments and errors.

    Args:
        base: Stable Diffusion, or a saved pipeline.
        controlnets: The ControlNets.
        depth_model: The DepthFM model.
        variant: Which weight files to look for.

    Returns:
        The folders.

    Raises:
        FileNotFoundError: As for `load_synthesis_pipeline`.
        ValueError: As for `load_synthesis_pipeline`.
    """
    folder = _resolve("base", base, lambda: DiffusionPipeline.download(base, variant=variant, use_safetensors=True))
    index = read_model_index(folder, "base")
    class_name = _class_name(index)
    if class_name not in _BASES | _COMPLETE:
        wrong = "Stable Diffusion XL has other components. " if "XL" in str(class_name) else ""
        raise ValueError(
            f"base {folder}: model_index.json says {class_name!r}, which is no Stable Diffusion 1.x or 2.x. {wrong}"
            f"Use a folder of one of: {', '.join(sorted(_BASES | _COMPLETE))}."
        )
    check_component_files(folder, index, "base")
    if not controlnets and "controlnet" not in component_names(index):
        raise ValueError(
            f"base {folder}: a {class_name} has no ControlNet; name a depth ControlNet made for it, with `controlnet`."
        )
    nets = tuple(_resolve_controlnet(one, variant) for one in controlnets or [])
    for net in nets:
        _check_fits(net, folder)
    own_estimator = class_name in _COMPLETE and depth_model is None
    folders = SynthesisFolders(folder, nets, None if own_estimator else resolve_model(depth_model, variant))
    given = [folder, *nets, *([] if folders.depth_model is None else [folders.depth_model])]
    if variant is not None and not any(_variant_in(one, variant) for one in given):
        raise ValueError(f"variant {variant}: there is no *.{variant}.safetensors in {', '.join(map(str, given))}.")
    return folders


def load_synthesis_folders(
    cls: type[Pipeline],
    folders: SynthesisFolders,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    offload: bool = False,
) -> Pipeline:
    """Loads the models from their folders, without any network.

    This is the second half of `load_synthesis_pipeline`, for callers that need the folders.

    Args:
        cls: The class of the pipeline.
        folders: From `resolve_synthesis_models`.
        device: Where to run.
        dtype: What to compute in.
        variant: Which weight files to load.
        offload: Whether only the network in use is on the device (`enable_model_cpu_offload`), to save memory.

    Returns:
        The pipeline, on the device.

    Raises:
        ValueError: As for `load_synthesis_pipeline`; or if `offload` is set and the device is the CPU.
    """
    target = get_device() if device == "auto" else device
    if offload and target.startswith("cpu"):
        raise ValueError(f"`offload` is for accelerators, to save their memory, but the device is {target!r}.")
    _check_channels(cls, folders.base)
    # The smaller models first: their errors are found sooner.
    nets = [_load_controlnet(folder, dtype, variant) for folder in folders.controlnets]
    components = {"controlnet": nets if len(nets) > 1 else nets[0]} if nets else {}
    estimator = None
    if folders.depth_model is not None:
        estimator = load_pipeline(folders.depth_model, "cpu", dtype, _variant_in(folders.depth_model, variant))
    base = _load_base(cls, folders.base, dtype, variant, nets)
    pipe = cls.from_pipelines(base, base.depth_estimator if estimator is None else estimator, **components)
    if not offload:
        return move_to_device(pipe, target)
    try:
        pipe.enable_model_cpu_offload(device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {target!r} cannot be used: {describe_error(error)}") from error
    return pipe


def load_lora(pipe: Any, lora: str) -> Path:
    """Loads LoRA weights into Stable Diffusion's part of a pipeline.

    Args:
        pipe: The pipeline.
        lora: A safetensors file, or a folder that has one.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be used.
    """
    path = Path(lora).expanduser()
    if path.is_dir():
        usual = path / "pytorch_lora_weights.safetensors"
        files = [usual] if usual.is_file() else [f for f in sorted(path.glob("*.safetensors")) if not is_junk(f.name)]
        if len(files) != 1:
            raise FileNotFoundError(f"lora {path}: the folder must have one safetensors file, and has {len(files)}.")
        path = files[0]
    if not path.is_file():
        raise FileNotFoundError(f"lora {path}: no such file or folder.")
    check_files([path])
    try:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True, local_files_only=True)
    except Exception as error:  # diffusers and peft, each with exceptions of its own
        raise ValueError(f"lora {path} cannot be loaded: {describe_error(error)}") from error
    if not pipe.get_list_adapters():  # diffusers only logs it
        raise ValueError(f"lora {path}: nothing in it is for this Stable Diffusion.")
    return path


def _resolve(argument: str, name: str, download: Callable[[], Any]) -> Path:
    """Returns a folder, or fetches a Hub repository; the error says what was looked for if there is neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(
            f"{argument} {name} is a file, not a folder in diffusers' format. Convert it with diffusers' "
            "from_single_file and save_pretrained."
        )
    if not REPOSITORY_NAME.fullmatch(name):
        raise FileNotFoundError(f"{argument} {name}: no such folder (nor is it the name of a Hub repository).")
    try:
        return Path(download())
    except Exception as error:  # huggingface_hub and its HTTP client have no common base class
        raise FileNotFoundError(
            f"{argument} {name}: there is no such folder, and the Hub repository could not be fetched: "
            f"{describe_error(error.__cause__ or error)}"
        ) from error


def _resolve_controlnet(name: str, variant: str | None) -> Path:
    """Returns the folder of a ControlNet, with its files checked."""
    weights = f"{_WEIGHTS}.safetensors" if variant is None else f"{_WEIGHTS}.{variant}.safetensors"
    wanted = ["config.json", weights]
    folder = _resolve("controlnet", name, lambda: snapshot_download(name, allow_patterns=wanted))
    if not (folder / "config.json").is_file():
        inside = folder / "controlnet"
        hint = f": name {inside}" if (inside / "config.json").is_file() else ""
        raise FileNotFoundError(f"controlnet {folder}: config.json is missing; not the folder of a ControlNet{hint}.")
    files = _controlnet_files(folder)
    check_files(files)
    class_name = read_json(folder / "config.json").get("_class_name")
    if class_name != "ControlNetModel":
        raise ValueError(f"controlnet {folder}: config.json says {class_name!r}, not 'ControlNetModel'.")
    if len(files) < 2:
        raise FileNotFoundError(
            f"controlnet {folder}: {_WEIGHTS}.safetensors is missing. Load other formats with ControlNetModel, and "
            "write them with its save_pretrained."
        )
    return folder


def _check_fits(controlnet: Path, base: Path) -> None:
    """Checks that a ControlNet was made for a UNet of the same sizes as the base's."""
    config, unet = read_json(controlnet / "config.json"), read_json(base / "unet" / "config.json")
    widths = text_width(_Configured(config)), text_width(_Configured(unet))
    if widths[0] != widths[1]:
        raise ValueError(
            f"controlnet {controlnet}: it attends to text embeddings of width {widths[0]}, but the UNet of base "
            f"{base} to {widths[1]}: use a ControlNet made for this Stable Diffusion (1.x has 768, 2.x 1024)."
        )
    for name in ("block_out_channels", "layers_per_block"):
        if config.get(name) != unet.get(name):
            raise ValueError(
                f"controlnet {controlnet}: its {name} is {config.get(name)}, but that of the UNet of base {base} "
                f"{unet.get(name)}: it was made for another Stable Diffusion."
            )


def _check_channels(cls: type[DiffusionPipeline], base: Path) -> None:
    """Checks that a UNet for inpainting is loaded into the pipeline for inpainting only."""
    channels = read_json(base / "unet" / "config.json").get("in_channels", 4)
    latent_channels = read_json(base / "vae" / "config.json").get("latent_channels", 4)
    if channels != latent_channels and cls is not DepthFMControlNetInpaintPipeline:
        raise ValueError(
            f"base {base}: an inpainting model (its UNet has {channels} input channels, not {latent_channels}), which "
            "needs a mask."
        )


def _load_base(
    cls: type[DiffusionPipeline], folder: Path, dtype: torch.dtype, variant: str | None, nets: list[ControlNetModel]
) -> Any:
    """Loads Stable Diffusion, or a saved pipeline, on the CPU; its ControlNets are not read if others are given."""
    index = read_model_index(folder)
    loader = cls if _class_name(index) in _COMPLETE else DiffusionPipeline
    # A placeholder: `from_pretrained` takes no list of ControlNets.
    replaced = {"controlnet": nets[0]} if nets and "controlnet" in component_names(index) else {}
    variant = _variant_in(folder, variant)
    options = {"dtype": dtype, "variant": variant, "local_files_only": True, "use_safetensors": True}
    try:
        base = loader.from_pretrained(folder, **options, **replaced)
    except Exception as error:  # loading runs through four libraries, each with exceptions of its own
        raise ValueError(f"base {folder} cannot be loaded: {describe_error(error)}") from error
    for path in component_folders(folder, index):
        component = getattr(base, path.name, None)
        # Only models of diffusers: transformers' files may have old names. Several ControlNets are not one model.
        if isinstance(component, ModelMixin) and not path.name.startswith("controlnet"):
            check_weights(path, component, variant)
    return base


def _load_controlnet(folder: Path, dtype: torch.dtype, variant: str | None) -> ControlNetModel:
    """Loads a ControlNet; all of its weights must be in its files."""
    variant = _variant_in(folder, variant)
    options = {"variant": variant, "local_files_only": True, "use_safetensors": True}
    try:
        controlnet = ControlNetModel.from_pretrained(folder, torch_dtype=dtype, **options)
    except Exception as error:  # as above
        raise ValueError(f"controlnet {folder} cannot be loaded: {describe_error(error)}") from error
    check_weights(folder, controlnet, variant)
    return controlnet


def _class_name(index: dict[str, Any]) -> Any:
    """Returns the name of the pipeline's class; the shareable form of a folder names the module before it."""
    name = index.get("_class_name")
    return name[-1] if isinstance(name, list) and name and name[-1] in _COMPLETE else name


def _controlnet_files(folder: Path) -> list[Path]:
    """Returns the files of a ControlNet, without those that training leaves beside them."""
    return weight_and_config_files(
        path for path in folder.iterdir() if path.name == "config.json" or path.name.startswith(_WEIGHTS)
    )


def _variant_in(folder: Path, variant: str | None) -> str | None:
    """Returns `variant` if a model has weight files of it, otherwise `None`."""
    return variant if variant is not None and any(folder.rglob(f"*.{variant}*.safetensors")) else None


class _Configured:
    """Stands for a network in checks that read its configuration only."""

    def __init__(self, config: dict[str, Any]) -> None:
        # Defaults as diffusers' networks have them.
        self.config = FrozenDict({"cross_attention_dim": 1280, "encoder_hid_dim": None, **config})
