"""Measuring depth adherence over a set of images: every image once, then the report and a picture."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...checkpoints.weights_hash import weights_sha256
from ...control_image import control_image_from_log_depth
from ...image_processing import load_image, load_images, resize
from ...inference.result_folder import describe_environment, describe_scheduler, hardware_name
from ...pipelines.depthfm_controlnet.controlnet_inputs import to_pil
from ...pipelines.depthfm_controlnet.pipeline_depthfm_controlnet import DepthFMControlNetPipeline
from ...utils.files import atomic_write, save_array
from ..runs.contact_sheet import color_depth, draw_sheet
from ..runs.means import format_value
from ..runs.resumable_run import named_image, partial_folder, run_over_images
from .images import PromptedImage, check_images, fingerprint
from .measures import REFERENCE, AdherenceSettings, AdherenceTest, aligned_depths, depth_adherence, draw_partners
from .report import build_adherence_report

MAX_PROMPT = 80
SHOWN = 8
TITLES = {"depth": "with its depth", "none": "without", "shuffled": "with another's"}


def run_adherence(
    pipe: DepthFMControlNetPipeline,
    images: Sequence[PromptedImage],
    settings: AdherenceSettings,
    output: str | os.PathLike[str],
    models: Mapping[str, Any],
    contact_sheet_path: str | os.PathLike[str] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Generates images by the depth of photos, estimates their depth, compares, and writes the report.

    A run that was stopped is resumed by the same call, see `resumable_run`; a call with another model, other images or
    settings is refused.

    Args:
        pipe: The pipeline, on its device, quiet.
        images: The photos; two at least for the condition `"shuffled"`, with keys of their own.
        settings: What to generate with.
        output: The JSON file to write; its folder is made if there is none.
        models: What the report calls the models.
        contact_sheet_path: PNG file to write, a row for each of the first eight images: the photo, its depth, the
            control image, and what was generated under each condition with its depth, aligned to the photo's and in
            the same colours, red near and blue far; `None` for none.
        on_progress: See `run_over_images`.

    Returns:
        The report: what `report.build_adherence_report` makes; `settings`, all that the scores depend on; `versions`;
        `models`; `per_image`, for each image its `key`, `prompt`, `seed`, `height` and `width` of what was generated,
        the scores by condition and for the reference, `flagged` by the safety checker, and the image whose depth it
        was `shuffled_with`; `time`, all that differs between two runs.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If an image cannot be used, or the results in the folder are of another run or damaged.
        RuntimeError: If the output of a network is not finite.
    """
    check_images(images)
    output = Path(output)
    partners = draw_partners(len(images), settings.seed) if "shuffled" in settings.conditions else None
    run = _Run(pipe, images, settings, partners, partial_folder(output))
    run.check_sizes()
    described = _describe(pipe, images, settings)
    return run_over_images(
        [one.key for one in images],
        run.score,
        lambda entries: build_adherence_report(entries, settings.conditions) | described | {"models": dict(models)},
        output,
        described,
        order=run.order(),
        draw=run.contact_sheet,
        picture_path=contact_sheet_path,
        threads=settings.threads,
        on_progress=on_progress,
    )


class _Run:
    """The images of a run. The depth of each photo is estimated once; pictures of the first ones are saved.

    Args:
        pipe: The pipeline.
        images: The photos.
        settings: What to generate with.
        partners: From `draw_partners`; `None` without the condition `"shuffled"`.
        folder: `partial_folder` of the report. The pictures for the contact sheet are saved there, too: to generate
            them again would take long.
    """

    def __init__(
        self,
        pipe: DepthFMControlNetPipeline,
        images: Sequence[PromptedImage],
        settings: AdherenceSettings,
        partners: Sequence[int] | None,
        folder: Path,
    ) -> None:
        self.test = AdherenceTest(pipe, settings)
        self.images = images
        self.settings = settings
        self.partners = partners
        self.folder = folder
        self._first: int | None = None
        self._log_depths: dict[int, torch.Tensor] = {}

    def check_sizes(self) -> None:
        """Checks that all photos are large enough, before any network runs."""
        for number in range(len(self.images)):
            with named_image(self.images[number].key):
                pixels = self._pixels(number)
                self.test.output_size((int(pixels.shape[-2]), int(pixels.shape[-1])))

    def order(self) -> list[int]:
        """Returns the numbers of all images, each followed by the one whose depth it is shuffled with.

        In this order two depth maps are kept at a time, and that of the first image, the partner of the last one.
        """
        if self.partners is None:
            return list(range(len(self.images)))
        order = [0]
        while len(order) < len(self.images):
            order.append(self.partners[order[-1]])
        return order

    def score(self, number: int) -> dict[str, Any]:
        """Computes the entry of one image, and saves its pictures if they are for the contact sheet."""
        with named_image(self.images[number].key):
            one, pixels, own = self.images[number], self._pixels(number), self._log_depth(number)
            entry: dict[str, Any] = {"key": one.key, "prompt": one.prompt, "seed": self.settings.seed + number}
            if self.partners is not None:
                entry["shuffled_with"] = self.images[self.partners[number]].key
            pictures = {REFERENCE: self.test.reconstruct(pixels)}
            entry["height"], entry["width"] = pictures[REFERENCE].shape[:2]
            entry["flagged"] = {}
            for condition in self.settings.conditions:
                pictures[condition], entry["flagged"][condition] = self._generate(condition, number)
            found = {condition: self.test.log_depth(picture)[0, 0].numpy() for condition, picture in pictures.items()}
            for condition, log_depth in found.items():
                scores = depth_adherence(own[0, 0].numpy(), log_depth)
                entry[condition] = {name: None if math.isnan(value) else value for name, value in scores.items()}
            if number < SHOWN:
                tiles = self._tiles(pixels, own, [(pictures[c], found[c]) for c in self.settings.conditions])
                with atomic_write(self._tiles_path(number)) as temporary:
                    save_array(temporary, np.stack(tiles))
        needed = {self._first, *([] if self.partners is None else [self.partners[number]])}
        self._log_depths = {key: value for key, value in self._log_depths.items() if key in needed}
        return entry

    def contact_sheet(self, entries: Sequence[Mapping[str, Any]]) -> NDArray[np.uint8]:
        """Draws the first images with what was generated and its depth, from the pictures that `score` has saved."""
        columns = ["photo", "its depth", "control image"]
        for condition in self.settings.conditions:
            columns += [TITLES[condition], "depth of that"]
        rows = []
        for number, (one, entry) in enumerate(zip(self.images[:SHOWN], entries[:SHOWN], strict=True)):
            scores = "   ".join(f"{TITLES[c]} {format_value(entry[c]['abs_rel'])}" for c in self.settings.conditions)
            prompt = f"   {textwrap.shorten(one.prompt, MAX_PROMPT, placeholder=' ...')!r}" if one.prompt else ""
            rows.append((f"{one.key}   AbsRel: {scores}{prompt}", list(np.load(self._tiles_path(number)))))
        return draw_sheet(columns, rows)

    def _tiles(
        self,
        pixels: torch.Tensor,
        own: torch.Tensor,
        generated: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    ) -> list[NDArray[np.uint8]]:
        """Draws a photo, its depth, its control image, and each generated image with its depth, all of one size."""
        size = self.test.output_size((int(pixels.shape[-2]), int(pixels.shape[-1])))
        control = control_image_from_log_depth(own, self.settings.control_mode, self.settings.control_percentiles)
        log_depth = resize(own.double(), size, "bilinear")[0, 0].numpy()
        # 0 at the nearest point, as in the aligned depths.
        log_depth -= log_depth.min()
        near, far = np.quantile(log_depth, (0.02, 0.98))
        tiles = [_picture(resize(pixels, size, "bilinear")), color_depth(np.exp(log_depth), near, far)]
        tiles.append(_picture(resize(control, size, "bilinear")))
        for picture, found in generated:
            _, depth = aligned_depths(own[0, 0].numpy(), found)
            tiles += [(picture * 255).round().astype(np.uint8), color_depth(depth, near, far)]
        return tiles

    def _tiles_path(self, number: int) -> Path:
        return self.folder / f"tiles-{number}.npy"

    def _generate(self, condition: str, number: int) -> tuple[NDArray[np.float32], bool]:
        other = self._log_depth(self.partners[number]) if condition == "shuffled" and self.partners else None
        return self.test.generate(condition, self.images[number].prompt, number, self._log_depth(number), other)

    def _log_depth(self, number: int) -> torch.Tensor:
        if number not in self._log_depths:
            self._log_depths[number] = self.test.log_depth(self._pixels(number))
            self._first = number if self._first is None else self._first
        return self._log_depths[number]

    def _pixels(self, number: int) -> torch.Tensor:
        """Reads a photo: 1×3×H×W in [0, 1]."""
        return load_images(load_image(self.images[number].path, self.images[number].max_pixels))[0]


def _picture(image: torch.Tensor) -> NDArray[np.uint8]:
    """Converts 1×3×H×W in [0, 1] to a picture H×W×3."""
    return np.asarray(to_pil(image.clamp(0, 1)))


def _describe(
    pipe: DepthFMControlNetPipeline, images: Sequence[PromptedImage], settings: AdherenceSettings
) -> dict[str, Any]:
    """Describes all that the results depend on."""
    environment = describe_environment(pipe)
    return {
        "settings": {
            **settings.describe(pipe.depth_estimator),
            "scheduler": describe_scheduler(pipe.scheduler),
            "depth_scheduler": describe_scheduler(pipe.depth_scheduler),
            "rescale_depth_self_attention": pipe.config.rescale_depth_self_attention,
            "device": hardware_name(pipe.device),
            "dtype": environment["dtype"],
            "weights": {
                name: weights_sha256(module)
                for name, module in sorted(pipe.components.items())
                if isinstance(module, torch.nn.Module)
            },
            "data": {"images": len(images), "fingerprint": fingerprint(images)},
        },
        "versions": environment["versions"],
    }
