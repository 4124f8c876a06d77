"""Measuring depth adherence over a set of images: stopped and gone on with at will, reported as JSON and a picture."""

from __future__ import annotations

import hashlib
import math
import os
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...control_image import control_image_from_log_depth
from ...export.images import save_image
from ...image_processing import (
    load_image,
    load_images,
    resize,
)
from ...inference.prediction_files import describe_run
from ...inference.result_folder import now
from ...pipelines.depthfm_controlnet.controlnet_inputs import to_pil
from ...pipelines.depthfm_controlnet.pipeline_depthfm_controlnet import DepthFMControlNetPipeline
from ...utils.files import (
    atomic_write,
    save_array,
    save_json,
)
from ..runs.benchmark import threads
from ..runs.contact_sheet import (
    color_depth,
    draw_sheet,
)
from ..runs.result_files import (
    ResultWriter,
    begin_run,
    check_run,
    partial_folder,
    read_results,
    remove_results,
)
from .images import (
    PromptedImage,
    check_images,
    fingerprint,
)
from .measures import (
    REFERENCE,
    AdherenceSettings,
    AdherenceTest,
    aligned_depths,
    depth_adherence,
    draw_partners,
)
from .report import build_adherence_report

MAX_PROMPT = 80
TABLE = {"abs_rel": "AbsRel", "delta1": "δ1", "boundary_f1": "edge F1", "correlation": "correlation"}
ROWS = {
    REFERENCE: "the photo, autoencoded",
    "depth": "generated with its depth",
    "shuffled": "with another photo's depth",
    "none": "without depth",
}
OTHERS = {"none": "without", "shuffled": "with another photo's depth"}
CELL = 24
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

    Until the report is complete, the results of single images are in a folder beside it (see `result_files`). When the
    run is stopped, the same call goes on from there; a call with another model, other images or settings is refused.

    Args:
        pipe: The pipeline, on its device, quiet.
        images: The photos; two at least for the condition `"shuffled"`, with keys of their own.
        settings: What to generate with.
        output: The JSON file to write; its folder is made if there is none.
        models: What the report calls the models.
        contact_sheet_path: PNG file to write, a row for each of the first eight images: the photo, its depth, the
            control image, and what was generated under each condition with its depth, aligned to the photo's and in
            the same colours, red near and blue far; `None` for none.
        on_progress: Called with the number of images done so far and the number there will be; first before the first.

    Returns:
        The report: what `adherence_report.build_adherence_report` makes; `settings`, all that the figures depend on;
        `versions`; `models`; `per_image`, for each its `key`, `prompt`, `seed`, `height` and `width` of what was
        generated, the scores by condition and for the reference, `flagged` by the safety checker, and whose depth it
        was `shuffled_with`; `time`, all that differs between two runs.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If an image cannot be used, or the results in the folder are of another run or damaged.
        RuntimeError: If the output of a network is not finite.
    """
    check_images(images)
    keys = [one.key for one in images]
    output = Path(output)
    folder = partial_folder(output)
    partners = draw_partners(len(images), settings.seed) if "shuffled" in settings.conditions else None
    run = _Run(pipe, images, settings, partners, folder)
    run.check_sizes()
    described = _describe(pipe, images, settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    begin_run(folder, described, now())
    started = check_run(folder, described)
    done = read_results(folder)
    pending = [number for number in run.order() if keys[number] not in done]
    if on_progress is not None:
        on_progress(len(keys) - len(pending), len(keys))
    with ResultWriter(folder, 0) as writer, threads(settings.threads):
        for position, number in enumerate(pending, start=1):
            begin = time.perf_counter()
            entry = run.score(number)
            writer.add({**entry, "seconds": round(time.perf_counter() - begin, 3)})
            if on_progress is not None:
                on_progress(len(keys) - len(pending) + position, len(keys))
    if contact_sheet_path is not None:
        with atomic_write(contact_sheet_path) as temporary:
            save_image(temporary, run.contact_sheet())
    results = read_results(folder)
    entries = [results[key] for key in keys]
    report = {
        **build_adherence_report(entries, settings.conditions),
        **described,
        "models": dict(models),
        "per_image": [{name: value for name, value in one.items() if name != "seconds"} for one in entries],
        "time": {
            "started": started,
            "finished": now(),
            "seconds": round(sum(one["seconds"] for one in entries), 3),
        },
    }
    save_json(output, report)
    remove_results(folder)
    return report


def format_adherence(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal, without a final newline."""
    rows = [condition for condition in ROWS if condition in report["mean"]]
    width = max(len(ROWS[condition]) for condition in rows)
    lines = [
        f"Depth adherence of {report['images']} images: estimated depth of what was generated, against that of the "
        "photo, aligned in log",
        "",
        " " * width + "".join(title.rjust(CELL) for title in TABLE.values()),
    ]
    for condition in rows:
        cells = (_cell(report["mean"][condition][name], report["interval"][condition][name]) for name in TABLE)
        lines.append(ROWS[condition].ljust(width) + "".join(cell.rjust(CELL) for cell in cells))
    lines += ["", "In brackets: 95 % intervals of the means (bootstrap over the images)."]
    for condition, paired in report["paired"].items():
        if paired["better"] is not None:
            difference = _cell(paired["abs_rel_difference"], paired["interval"], "+.3f")
            lines.append(
                f"AbsRel with its depth less that {OTHERS[condition]}: {difference}; it is lower for "
                f"{paired['better']:.0%} of {paired['images']} images."
            )
    for name, title in TABLE.items():
        defined = min(report["counts"][condition][name] for condition in rows)
        if defined < report["images"]:
            lines.append(
                f"{title} is defined for {defined} images: the depth of the others has none of what it measures."
            )
    flagged = sum(any(one["flagged"].values()) for one in report["per_image"])
    if flagged:
        lines.append(
            f"The safety checker has blackened what was generated for {flagged} of the images: see `flagged`."
        )
    return "\n".join(lines)


class _Run:
    """The images of a run, each of whose depths is estimated once, and what is drawn of the first ones.

    Args:
        pipe: The pipeline.
        images: The photos.
        settings: What to generate with.
        partners: From `draw_partners`; `None` without the condition `"shuffled"`.
        folder: Of the results; the pictures for the contact sheet are there too, for they are dear to make again.
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
        """Checks that there is an image to generate for each photo, before any network runs."""
        for number in range(len(self.images)):
            with self._named(number):
                pixels = self._pixels(number)
                self.test.output_size((int(pixels.shape[-2]), int(pixels.shape[-1])))

    def order(self) -> list[int]:
        """The numbers of all images, each followed by the one whose depth it is shuffled with.

        So two depth maps are kept, and that of the first image, which is the last one's partner.
        """
        if self.partners is None:
            return list(range(len(self.images)))
        order = [0]
        while len(order) < len(self.images):
            order.append(self.partners[order[-1]])
        return order

    def score(self, number: int) -> dict[str, Any]:
        """The entry of one image; its pictures are kept if they are to be shown."""
        with self._named(number):
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

    def contact_sheet(self) -> NDArray[np.uint8]:
        """The first images with what was generated and its depth, as they were kept."""
        columns = ["photo", "its depth", "control image"]
        for condition in self.settings.conditions:
            columns += [TITLES[condition], "depth of that"]
        results = read_results(self.folder)
        rows = []
        for number, one in enumerate(self.images[:SHOWN]):
            entry = results[one.key]
            scores = "   ".join(f"{TITLES[c]} {_score_text(entry[c]['abs_rel'])}" for c in self.settings.conditions)
            prompt = f"   {textwrap.shorten(one.prompt, MAX_PROMPT, placeholder=' ...')!r}" if one.prompt else ""
            rows.append((f"{one.key}   AbsRel: {scores}{prompt}", list(np.load(self._tiles_path(number)))))
        return draw_sheet(columns, rows)

    def _tiles(
        self,
        pixels: torch.Tensor,
        own: torch.Tensor,
        generated: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    ) -> list[NDArray[np.uint8]]:
        """Pictures of one size, of an image and of what was generated and its log depth."""
        size = self.test.output_size((int(pixels.shape[-2]), int(pixels.shape[-1])))
        control = control_image_from_log_depth(own, self.settings.control_mode, self.settings.control_percentiles)
        log_depth = resize(own.double(), size, "bilinear")[0, 0].numpy()
        # From the nearest point on, as the aligned depths are.
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
        """The photo, 1×3×H×W in [0, 1]."""
        return load_images(load_image(self.images[number].path))[0]

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        """Errors say which image it was."""
        try:
            yield
        except (ValueError, TypeError, RuntimeError) as error:
            kind = RuntimeError if isinstance(error, RuntimeError) else ValueError
            raise kind(f"image {self.images[number].key!r}: {error}") from error


def _picture(image: torch.Tensor) -> NDArray[np.uint8]:
    """Makes 1×3×H×W in [0, 1] a picture."""
    return np.asarray(to_pil(image.clamp(0, 1)))


def _describe(
    pipe: DepthFMControlNetPipeline, images: Sequence[PromptedImage], settings: AdherenceSettings
) -> dict[str, Any]:
    """All that the results depend on."""
    depth_run = describe_run(pipe.depth_estimator, settings.for_prediction(), "", "")
    scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return {
        "settings": {
            **asdict(settings),
            "conditions": list(settings.conditions),
            "control_percentiles": list(settings.control_percentiles),
            "depth_num_inference_steps": depth_run["settings"]["num_inference_steps"],
            "depth_processing_resolution": depth_run["settings"]["processing_resolution"],
            "scheduler": {"class": type(pipe.scheduler).__name__, **scheduler},
            "depth_scheduler": depth_run["scheduler"],
            "rescale_depth_self_attention": pipe.config.rescale_depth_self_attention,
            "device": torch.cuda.get_device_name(pipe.device) if pipe.device.type == "cuda" else pipe.device.type,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "weights": {name: _hash_weights(module) for name, module in _modules(pipe).items()},
            "data": {"images": len(images), "fingerprint": fingerprint(images)},
        },
        "versions": depth_run["versions"],
    }


def _modules(pipe: DepthFMControlNetPipeline) -> dict[str, torch.nn.Module]:
    return {name: one for name, one in sorted(pipe.components.items()) if isinstance(one, torch.nn.Module)}


def _hash_weights(module: torch.nn.Module) -> str:
    """SHA-256 of a network's tensors by name, whatever files they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        content = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
        digest.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _score_text(value: float | None) -> str:
    """A score as text, a dash where it is not defined."""
    return "-" if value is None else f"{value:.3f}"


def _cell(mean: float | None, ends: Sequence[float] | None, form: str = ".3f") -> str:
    return "-" if mean is None or ends is None else f"{mean:{form}} [{ends[0]:{form}}, {ends[1]:{form}}]"
