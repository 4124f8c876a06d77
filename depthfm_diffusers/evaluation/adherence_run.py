"""Measuring depth adherence over a set of images: stopped and gone on with at will, reported as JSON and a picture."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..control_image import control_image_from_log_depth
from ..control_inputs import to_pil
from ..export import atomic_write, save_image, save_json
from ..image_processing import load_image, load_images
from ..pipeline_depthfm_controlnet import DepthFMControlNetPipeline
from ..prediction_files import PredictionSettings, describe_run
from .adherence import MEASURES, REFERENCE, AdherenceSettings, AdherenceTest, depth_adherence, draw_partners
from .alignment import align
from .benchmark import now, threads
from .contact_sheet import color_depth, draw_sheet
from .report import bootstrap_interval
from .result_files import ResultWriter, begin_run, check_run, partial_folder, read_results, remove_results

REPORT_FORMAT = "depthfm adherence, 1"
SHOWN = 8
TITLES = {"depth": "with its depth", "none": "without", "shuffled": "with another's"}
TABLE = {"abs_rel": "AbsRel", "delta1": "δ1", "boundary_f1": "edge F1"}
ROWS = {
    REFERENCE: "the photo, autoencoded",
    "depth": "generated with its depth",
    "shuffled": "with another photo's depth",
    "none": "without depth",
}


@dataclass(frozen=True)
class PromptedImage:
    """A photo and the prompt that images are generated from.

    Attributes:
        key: Its name in the report.
        path: The image file.
        prompt: The prompt; may be empty.
    """

    key: str
    path: Path
    prompt: str


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
        contact_sheet_path: PNG file of the first eight images to write; `None` for none.
        on_progress: Called with the number of images done so far and the number there will be; first before the first.

    Returns:
        The report: `images`; per condition and for the reference `mean`, `interval` (95 %, bootstrap) and `counts` of
        the images where a measure is defined; `wins`, the share of images that follow their depth better (AbsRel) with
        it than under another condition; `per_image`; `settings`, `versions`, `time`.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If an image cannot be used, or the results in the folder are of another run or damaged.
        RuntimeError: If the output of a network is not finite.
    """
    keys = [one.key for one in images]
    if len(set(keys)) != len(keys):
        raise ValueError(f"Two images are called {max(keys, key=keys.count)!r}: give each a name of its own.")
    if not images:
        raise ValueError("There is no image.")
    output = Path(output)
    folder = partial_folder(output)
    partners = draw_partners(len(images), settings.seed) if "shuffled" in settings.conditions else None
    described = _describe(pipe, images, settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    begin_run(folder, described, now())
    started = check_run(folder, described)
    done = read_results(folder)
    pending = [number for number, key in enumerate(keys) if key not in done]
    if on_progress is not None:
        on_progress(len(keys) - len(pending), len(keys))
    run = _Run(pipe, images, settings, partners)
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


def build_adherence_report(entries: Sequence[Mapping[str, Any]], conditions: Sequence[str]) -> dict[str, Any]:
    """Means over the images, and how often the control helped.

    Args:
        entries: Of each image, the scores under each condition and of the reference.
        conditions: Those that there are.

    Returns:
        What `run_adherence` describes, without the images themselves.
    """
    mean: dict[str, Any] = {}
    interval: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    for condition in (REFERENCE, *conditions):
        columns = {name: [e[condition][name] for e in entries if e[condition][name] is not None] for name in MEASURES}
        mean[condition] = {name: float(np.mean(c)) if c else None for name, c in columns.items()}
        interval[condition] = {name: bootstrap_interval(column) for name, column in columns.items()}
        counts[condition] = {name: len(column) for name, column in columns.items()}
    wins = {}
    if "depth" in conditions:
        for condition in conditions:
            if condition != "depth":
                better = [e["depth"]["abs_rel"] < e[condition]["abs_rel"] for e in entries]
                wins[condition] = float(np.mean(better))
    return {
        "format": REPORT_FORMAT,
        "images": len(entries),
        "mean": mean,
        "interval": interval,
        "counts": counts,
        "wins": wins,
    }


def format_adherence(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal, without a final newline."""
    rows = [condition for condition in ROWS if condition in report["mean"]]
    width = max(len(ROWS[condition]) for condition in rows)
    lines = [
        f"Depth adherence of {report['images']} images: the depth of what was generated, against the photo's, aligned "
        "in log",
        "",
        " " * width + "".join(title.rjust(26) for title in TABLE.values()),
    ]
    for condition in rows:
        cells = []
        for measure in TABLE:
            value, ends = report["mean"][condition][measure], report["interval"][condition][measure]
            cells.append("-" if value is None else f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]")
        lines.append(ROWS[condition].ljust(width) + "".join(cell.rjust(26) for cell in cells))
    lines += ["", "In brackets: 95 % intervals of the means (bootstrap over the images)."]
    for condition, share in report["wins"].items():
        what = {"none": "than without it", "shuffled": "than images made with another's"}[condition]
        lines.append(f"{share:.0%} of the images follow their depth better with it {what} (AbsRel).")
    flagged = sum(any(one["flagged"].values()) for one in report["per_image"])
    if flagged:
        lines.append(f"{flagged} images were blackened by the safety checker, which spoils their figures.")
    return "\n".join(lines)


class _Run:
    """The images of a run, each of whose depths is estimated once."""

    def __init__(
        self,
        pipe: DepthFMControlNetPipeline,
        images: Sequence[PromptedImage],
        settings: AdherenceSettings,
        partners: Sequence[int] | None,
    ) -> None:
        self.test = AdherenceTest(pipe, settings)
        self.images = images
        self.settings = settings
        self.partners = partners
        self._log_depths: dict[int, torch.Tensor] = {}

    def score(self, number: int) -> dict[str, Any]:
        """The entry of one image."""
        one, own = self.images[number], self._log_depth(number)
        size = (int(own.shape[-2]), int(own.shape[-1]))
        entry: dict[str, Any] = {"key": one.key, "prompt": one.prompt, "seed": self.settings.seed + number}
        if self.partners is not None:
            entry["shuffled_with"] = self.images[self.partners[number]].key
        pictures = {REFERENCE: (self.test.reconstruct(self._pixels(number)), False)}
        pictures |= {condition: self._generate(condition, number) for condition in self.settings.conditions}
        entry["flagged"] = {condition: pictures[condition][1] for condition in self.settings.conditions}
        for condition, (picture, _) in pictures.items():
            scores = depth_adherence(own[0, 0].numpy(), self.test.log_depth(picture, size)[0, 0].numpy())
            entry[condition] = {name: None if np.isnan(value) else value for name, value in scores.items()}
        return entry

    def contact_sheet(self) -> NDArray[np.uint8]:
        """The first images again, with what was generated and its depth."""
        columns = ["photo", "its depth as control"]
        for condition in self.settings.conditions:
            columns += [TITLES[condition], "depth of that"]
        rows = []
        for number, one in enumerate(self.images[:SHOWN]):
            own = self._log_depth(number)
            control = control_image_from_log_depth(own, self.settings.control_mode, self.settings.control_percentiles)
            truth = np.exp(own[0, 0].double().numpy())
            near, far = np.quantile(np.log(truth), (0.02, 0.98))
            tiles = [np.asarray(to_pil(self._pixels(number))), np.asarray(to_pil(control))]
            for condition in self.settings.conditions:
                picture, _ = self._generate(condition, number)
                found = self.test.log_depth(picture, truth.shape)[0, 0].numpy()
                depth = align(found, truth, np.ones(truth.shape, dtype=bool), "log").depth
                tiles += [(picture * 255).round().astype(np.uint8), color_depth(depth, near, far)]
            rows.append((f"{one.key}   {one.prompt!r}", tiles))
        return draw_sheet(columns, rows)

    def _generate(self, condition: str, number: int) -> tuple[NDArray[np.float32], bool]:
        other = self._log_depth(self.partners[number]) if condition == "shuffled" and self.partners else None
        return self.test.generate(condition, self.images[number].prompt, number, self._log_depth(number), other)

    def _log_depth(self, number: int) -> torch.Tensor:
        if number not in self._log_depths:
            self._log_depths[number] = self.test.log_depth(self._pixels(number))
        return self._log_depths[number]

    def _pixels(self, number: int) -> torch.Tensor:
        """The photo, 1×3×H×W in [0, 1]."""
        one = self.images[number]
        try:
            return load_images(load_image(one.path))[0]
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"image {one.key!r}: {error}") from error


def _describe(
    pipe: DepthFMControlNetPipeline, images: Sequence[PromptedImage], settings: AdherenceSettings
) -> dict[str, Any]:
    """All that the results depend on."""
    estimator = pipe.depth_estimator
    prediction = PredictionSettings(
        num_inference_steps=settings.depth_num_inference_steps,
        processing_resolution=settings.depth_processing_resolution,
        seed=settings.seed,
    )
    depth_run = describe_run(estimator, prediction, "", "")
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
            "device": pipe.device.type,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "weights": {name: _hash_weights(module) for name, module in _modules(pipe).items()},
            "data": _hash_images(images),
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


def _hash_images(images: Sequence[PromptedImage]) -> str:
    """SHA-256 of the files, their names and prompts, in order."""
    digest = hashlib.sha256()
    for one in images:
        digest.update(f"{len(one.key)} {one.key} {len(one.prompt)} {one.prompt}".encode())
        with one.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
