"""Generating images from the depth of image files into a folder, with a record of how; see `result_folder`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..export.images import save_image
from ..image_processing import load_image
from ..pipelines.depthfm_controlnet.controlnet_noise import depth_seed
from ..utils.files import file_sha256, save_array
from .input_files import InputFailure
from .result_folder import ResultFolder, describe_environment, describe_scheduler, now, process_each
from .result_record import check_file_name
from .synthesis_inputs import SynthesisSources
from .synthesis_settings import SynthesisPipeline, SynthesisSettings

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
        file: The image's file.
        is_flagged: Whether the safety checker has replaced it by a black image.
    """

    file: Path
    is_flagged: bool


class SynthesisFolder(ResultFolder):
    """A folder of generated images and its `metadata.json`.

    A result is all images that were generated from one input by the same models with the same settings. Images of
    other seeds are added to it. Other settings get another NAME, so that nothing is overwritten.

    Args:
        path: The folder; made if it does not exist.

    Raises:
        OSError: If it cannot be made or written to.
        ValueError: If it holds a `metadata.json` that `depthfm synthesize` did not write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "synthesize", METADATA_FORMAT, VALUES)
        self._run_number = -1

    def check_entry(self, entry: Mapping[str, Any]) -> None:
        """Checks the images and the hash of the input that an entry of the record has."""
        images = entry.get("images")
        usable = isinstance(entry.get("input_sha256"), str) and isinstance(images, list)
        for one in images or () if usable else ():
            usable = usable and isinstance(one, dict) and type(one.get("seed")) is int and "nsfw" in one
            check_file_name(one.get("file") if usable else None)
        if not usable:
            raise ValueError(f"{entry['name']!r} lacks `input_sha256` or `images` with `file`, `seed` and `nsfw`")

    def begin_synthesis(self, run: dict[str, Any], sources: SynthesisSources) -> None:
        """Starts a run, or resumes an earlier one that differs in seeds only.

        Args:
            run: From `describe_synthesis`.
            sources: The inputs; their files will not be overwritten.
        """
        self._run_number = self.begin_run(run, sources.protected(), resume=True)

    def begin_result(self, source: Path, seeds: Sequence[int]) -> dict[str, Any]:
        """Prepares the entry of an input; nothing is written yet.

        Args:
            source: The input.
            seeds: The seeds of the images to come.

        Returns:
            The entry, with the images that earlier runs have written.
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
        """Writes an image, with the first one also control image and log depth, and records it.

        Args:
            entry: The result, as this or `begin_result` returned it.
            seed: The seed of the image.
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
    """Returns the prompts that are too long for Stable Diffusion, and how many tokens of each are not used."""
    prompts = {"prompt": settings.prompt, "negative prompt": settings.negative_prompt or ""}
    longest = pipe.tokenizer.model_max_length
    lengths = {name: len(pipe.tokenizer(text).input_ids) for name, text in prompts.items()}
    return {name: length - longest for name, length in lengths.items() if length > longest}


def describe_synthesis(
    pipe: SynthesisPipeline, settings: SynthesisSettings, models: Mapping[str, Any], sources: SynthesisSources
) -> dict[str, Any]:
    """Describes what is needed to repeat a run, apart from the seeds, for `metadata.json`.

    Args:
        pipe: The pipeline.
        settings: The settings, defaults not yet filled in.
        models: The models that the pipeline consists of.
        sources: The inputs.

    Returns:
        A dictionary that JSON can hold.
    """
    return {
        "started": now(),
        "models": {**models, "rescale_depth_self_attention": pipe.config.rescale_depth_self_attention},
        "settings": settings.describe(pipe),
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
    """Generates images from files, one file after the other; a bad file does not stop the others.

    Each image is a call of its own with a generator of its own, so that it does not depend on the other images.

    Args:
        pipe: The pipeline, of the settings' class.
        sources: The inputs.
        folder: Where the results go; `begin_synthesis` has been called.
        settings: How to generate.
        seeds: One image is generated from each input and seed.

    Yields:
        Each image once it is written; for an input that fails, why, instead of the rest of its images.
    """
    return process_each(sources.files, lambda source: _synthesize_file(pipe, source, sources, folder, settings, seeds))


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
    photo = load_image(source, sources.max_pixels) if sources.has_photos else None
    log_depth: Any = sources.log_depth
    size = (photo.height, photo.width) if photo is not None else (log_depth.shape[-2], log_depth.shape[-1])
    arguments = settings.pipeline_arguments()
    arguments["height"], arguments["width"] = settings.output_size(size)
    if settings.start != "noise":
        arguments["image"] = photo
    if settings.start == "mask":
        arguments["mask_image"] = sources.mask
    # The depth's seed may be that of the image: the noise is not to be the same.
    estimation = replace(settings.depth, seed=depth_seed(settings.depth.seed)).call_arguments()
    for seed in seeds:
        depth = {"image": photo, "depth_kwargs": estimation} if log_depth is None else {"log_depth": log_depth}
        generator = torch.Generator("cpu").manual_seed(seed)  # on the CPU whatever the device, as for the depth
        output: Any = pipe(**(arguments | depth), generator=generator, output_type="np")
        log_depth = output.log_depth
        entry = folder.add_image(entry, seed, output)
        (made,) = (one for one in entry["images"] if one["seed"] == seed)
        yield SynthesizedImage(folder.path / made["file"], bool(made["nsfw"]))
