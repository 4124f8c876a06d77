"""Making images from the depth of image files into a folder, with a record of what made each; see `result_folder`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..control_image import DEFAULT_CONTROL_PERCENTILES
from ..export.images import save_image
from ..image_processing import load_image
from ..utils.files import file_sha256, save_array
from .input_files import InputFailure
from .result_folder import (
    INPUT_ERRORS,
    ResultFolder,
    describe_environment,
    describe_scheduler,
    input_failure,
    now,
)
from .synthesis_inputs import SynthesisSources
from .synthesis_settings import (
    SynthesisPipeline,
    SynthesisSettings,
)

METADATA_FORMAT = "depthfm synthesize, 1"
CONTROL_ENDING, LOG_DEPTH_ENDING = "_control.png", "_log_depth.npy"
VALUES = {
    "_seedN.png": "8-bit sRGB: the image generated from seed N.",
    CONTROL_ENDING: "8-bit RGB: the control image, of the size of the input; what the ControlNets see of the depth.",
    LOG_DEPTH_ENDING: (
        "float32, height x width of the upright input: the log depth that the control image is made of. The network's "
        "is about [-1, 1], larger is farther; the true log depth is a * value + b, with a > 0 and b unknown."
    ),
}


@dataclass(frozen=True)
class SynthesizedImage:
    """An image that has been written.

    Attributes:
        file: Its file.
        is_flagged: Whether the safety checker has replaced it by a black one.
    """

    file: Path
    is_flagged: bool


class SynthesisFolder(ResultFolder):
    """A folder of generated images and its `metadata.json`.

    A result is an input with all images made of it by the same models with the same settings; other seeds come beside
    those that are there. Nothing else takes the place of what is there: other settings get another NAME.

    Args:
        path: The folder; made if it does not exist.

    Raises:
        OSError: If it cannot be made or written to.
        ValueError: If it holds a `metadata.json` of other origin, which a run would have to overwrite.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "synthesize", METADATA_FORMAT, VALUES)
        self._run_number = -1

    def begin_synthesis(self, run: dict[str, Any], sources: SynthesisSources) -> None:
        """Starts a run, or goes on with an earlier one that differs in nothing but seeds.

        Args:
            run: From `describe_synthesis`.
            sources: None of whose files will be overwritten.
        """
        self._run_number = self.begin_run(run, sources.protected(), go_on=True)

    def begin_result(self, source: Path, seeds: Sequence[int]) -> dict[str, Any]:
        """The entry, still to be added, of the images of an input.

        Args:
            source: The input.
            seeds: Those that images will be made from.

        Returns:
            The entry, with the images that are there already.
        """
        digest = file_sha256(source)
        earlier = self.last_entry(source, self._run_number)
        if earlier is not None and earlier["input_sha256"] != digest:
            earlier = None
        endings = [CONTROL_ENDING, LOG_DEPTH_ENDING, *(f"_seed{seed}.png" for seed in seeds)]
        name = self.choose_name(source, endings, earlier)
        images = earlier["images"] if earlier is not None and earlier["name"] == name else []
        return {"name": name, "input": str(source), "input_sha256": digest, "images": images}

    def add_image(self, entry: Mapping[str, Any], seed: int, output: Any) -> dict[str, Any]:
        """Writes an image, and beside the first of a result its control image and log depth; then `metadata.json`.

        Args:
            entry: The result, as this or `begin_result` returned it.
            seed: What the image was made from.
            output: `DepthFMControlNetOutput` of one image, as arrays.

        Returns:
            The result with the image.

        Raises:
            RuntimeError: If the image is not finite.
        """
        image = output.images[0]
        if not np.isfinite(image).all():
            raise RuntimeError(
                f"the image of seed {seed} has NaN or infinite values: compute in another dtype, bfloat16 or float32."
            )
        name = entry["name"]
        control, log_depth, file = name + CONTROL_ENDING, name + LOG_DEPTH_ENDING, f"{name}_seed{seed}.png"
        write: dict[str, Callable[[Path], object]] = {
            file: partial(save_image, array=(image * 255).round().astype(np.uint8))
        }
        if "files" not in entry:
            write[control] = partial(save_image, array=np.asarray(output.control_image[0]))
            write[log_depth] = partial(save_array, array=output.log_depth[0, ..., 0].astype(np.float32))
        flags = output.nsfw_content_detected
        made = {"file": file, "seed": seed, "nsfw": None if flags is None else bool(flags[0])}
        images = sorted([*(one for one in entry["images"] if one["seed"] != seed), made], key=lambda one: one["seed"])
        added = {
            **entry,
            "height": image.shape[0],
            "width": image.shape[1],
            "images": images,
            "files": [control, log_depth, *(one["file"] for one in images)],
        }
        self.add(added, write)
        return added


def cut_prompts(pipe: SynthesisPipeline, settings: SynthesisSettings) -> dict[str, int]:
    """Prompts with more tokens than Stable Diffusion reads: their names, and how many tokens are left out."""
    prompts = {"prompt": settings.prompt, "negative prompt": settings.negative_prompt or ""}
    longest = pipe.tokenizer.model_max_length
    lengths = {name: len(pipe.tokenizer(text).input_ids) for name, text in prompts.items()}
    return {name: length - longest for name, length in lengths.items() if length > longest}


def describe_synthesis(
    pipe: SynthesisPipeline, settings: SynthesisSettings, models: Mapping[str, Any], sources: SynthesisSources
) -> dict[str, Any]:
    """What is needed to repeat a run, seeds aside, for `metadata.json`.

    Args:
        pipe: The pipeline.
        settings: The settings, defaults not yet filled in.
        models: What models the pipeline is made of.
        sources: What images are made of.

    Returns:
        A dictionary that JSON can hold.
    """
    config = pipe.config
    resolved = asdict(settings) | settings.pipeline_arguments()
    resolved["control_percentiles"] = list(DEFAULT_CONTROL_PERCENTILES)
    resolved["depth_num_inference_steps"] = (
        settings.depth_num_inference_steps or config.default_depth_num_inference_steps
    )
    if settings.depth_processing_resolution is None:
        resolved["depth_processing_resolution"] = config.default_depth_processing_resolution
    return {
        "started": now(),
        "models": {**models, "rescale_depth_self_attention": config.rescale_depth_self_attention},
        "settings": resolved,
        "given": sources.describe(),
        "scheduler": describe_scheduler(pipe.scheduler),
        "depth_scheduler": describe_scheduler(pipe.depth_scheduler),
        "has_safety_checker": pipe.safety_checker is not None,
        **describe_environment(pipe),
    }


def synthesize_files(
    pipe: SynthesisPipeline,
    sources: SynthesisSources,
    folder: SynthesisFolder,
    settings: SynthesisSettings,
    seeds: Sequence[int],
) -> Iterator[SynthesizedImage | InputFailure]:
    """Makes images of files, one after the other; a bad file does not stop the others.

    Each image is a call of its own with a generator of its own, so that it does not depend on what else is made.

    Args:
        pipe: The pipeline, of the settings' class.
        sources: What images are made of.
        folder: Where the results go; `begin_synthesis` has been called.
        settings: What to generate with.
        seeds: Of each input, one image is made per seed.

    Yields:
        Each image once it is written; for an input that fails, why, instead of the rest of its images.
    """
    for source in sources.files:
        try:
            yield from _synthesize_file(pipe, source, sources, folder, settings, seeds)
        except INPUT_ERRORS as error:
            yield input_failure(source, error)


def _synthesize_file(
    pipe: SynthesisPipeline,
    source: Path,
    sources: SynthesisSources,
    folder: SynthesisFolder,
    settings: SynthesisSettings,
    seeds: Sequence[int],
) -> Iterator[SynthesizedImage]:
    """Makes the images of one file; its depth is estimated with the first."""
    entry = folder.begin_result(source, seeds)
    photo = load_image(source) if sources.has_photos else None
    log_depth: Any = sources.log_depth
    size = (photo.height, photo.width) if photo is not None else (log_depth.shape[-2], log_depth.shape[-1])
    arguments = settings.pipeline_arguments()
    arguments["height"], arguments["width"] = settings.output_size(size)
    if settings.start != "noise":
        arguments["image"] = photo
    if settings.start == "mask":
        arguments["mask_image"] = sources.mask
    for seed in seeds:
        depth = (
            {"image": photo, "depth_kwargs": settings.depth_arguments()}
            if log_depth is None
            else {"log_depth": log_depth}
        )
        generator = torch.Generator("cpu").manual_seed(seed)  # on the CPU whatever the device, as for the depth
        output: Any = pipe(**(arguments | depth), generator=generator, output_type="np")
        log_depth = output.log_depth
        entry = folder.add_image(entry, seed, output)
        (made,) = (one for one in entry["images"] if one["seed"] == seed)
        yield SynthesizedImage(folder.path / made["file"], bool(made["nsfw"]))
