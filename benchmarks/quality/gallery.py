"""Depth of photographs that Python packages ship, at 1 and 2 steps: `docs/gallery.md` and its pictures.

    python benchmarks/quality/gallery.py

`gallery.toml`, beside this file, lists the photographs. Its verdicts are made by eye and hold for one model: after a
change of the model run this script, look at the pictures, edit verdicts, remarks and the comparison, set
`judged_model` to the hash that the script prints, and run it again. `pip install -e '.[gallery]'` installs the
packages. The model runs on the CPU, so that the pictures do not depend on the machine's accelerator.
"""

from __future__ import annotations

import argparse
import textwrap
import tomllib
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from evaluate_bundled_model import motorcycle
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.checkpoints.model_folder import load_pipeline, model_fingerprint, resolve_model
from depthfm_diffusers.export.images import colorize_depth
from depthfm_diffusers.inference.prediction import Prediction, PredictionSettings, predict_image
from depthfm_diffusers.training.validation.depth_validation import score_log_depth
from depthfm_diffusers.utils.files import atomic_write
from depthfm_diffusers.utils.imports import import_optional

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_suffix(".toml")
STEPS = (1, 2)
VERDICTS = {
    "good": "things, their outlines and their order from near to far are as in the photograph",
    "weak": "part of it is right, and a thing or an outline that matters is missing or wrong",
    "bad": "the map is not the depth of this photograph",
}
# Longest side of one panel and the white between two, in pixels; quality of the WebP files.
PANEL, GAP, QUALITY = 288, 8, 80


@dataclass(frozen=True)
class Photograph:
    """A photograph in an installed package, and what is to be said of its depth.

    Attributes:
        name: Name of the picture's file, without suffix.
        title: What is to be seen.
        package: The package's name on PyPI.
        module: The package's name in Python.
        file: The file in the package: an image, or `.npz` with one array, H×W, `uint8`.
        licence: The licence, as the package states it.
        credit: Who made it or where it is from, as the package states it; Markdown.
        verdict: One of `VERDICTS`.
        remark: What to see, one sentence.

    Raises:
        ValueError: If the verdict is none of `VERDICTS`.
    """

    name: str
    title: str
    package: str
    module: str
    file: str
    licence: str
    credit: str
    verdict: str
    remark: str

    def __post_init__(self) -> None:
        """Checks the verdict."""
        if self.verdict not in VERDICTS:
            raise ValueError(
                f"{TABLE.name}, {self.name}: `verdict` must be one of {', '.join(VERDICTS)}, got {self.verdict!r}."
            )


@dataclass(frozen=True)
class Table:
    """What is written by hand.

    Attributes:
        judged_model: First digits of the `model_fingerprint` of the model that the verdicts are about.
        comparison: What 2 steps change, of the same model; Markdown.
        photographs: The photographs, in the order of the page.
    """

    judged_model: str
    comparison: str
    photographs: list[Photograph]


def read_table(path: Path = TABLE) -> Table:
    """Reads `gallery.toml`."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    photographs = [Photograph(**entry) for entry in content["photograph"]]
    return Table(content["judged_model"], content["comparison"].strip(), photographs)


def load_photograph(photograph: Photograph) -> Image.Image:
    """Reads a photograph from its package, as RGB.

    Raises:
        ImportError: If the package is not installed.
        FileNotFoundError: If its installed version has no such file.
    """
    import_optional(photograph.module, "gallery", f"the photograph {photograph.name} of the gallery")
    with as_file(files(photograph.module) / photograph.file) as path:
        if not path.is_file():
            raise FileNotFoundError(
                f"the installed {photograph.package} has no {photograph.file}, the photograph {photograph.name} of "
                "the gallery; install the version in constraints.txt."
            )
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                (name,) = arrays.files
                return Image.fromarray(arrays[name]).convert("RGB")
        with Image.open(path) as image:
            return image.convert("RGB")


def row_picture(photo: Image.Image, predictions: list[Prediction]) -> Image.Image:
    """Puts a photograph and its depth maps side by side, small; coloured as `depthfm predict` does."""
    panels = [photo, *(Image.fromarray(colorize_depth(prediction.depth)) for prediction in predictions)]
    panels = [ImageOps.contain(panel, (PANEL, PANEL), Image.Resampling.LANCZOS) for panel in panels]
    width, height = panels[0].size
    row = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height), "white")
    for index, panel in enumerate(panels):
        row.paste(panel, (index * (width + GAP), 0))
    return row


def wrap(text: str) -> str:
    """Breaks a paragraph into lines of at most 119 characters, at spaces only."""
    return textwrap.fill(text, 119, break_long_words=False, break_on_hyphens=False)


def write_section(pipe: DepthFMPipeline, photograph: Photograph, folder: Path, page: Path) -> tuple[str, float]:
    """Predicts one photograph, writes its picture and describes it.

    Returns:
        The section of the page, and the mean absolute difference of the two depth maps, which lie in [0, 1].
    """
    photo = load_photograph(photograph)
    predictions = [predict_image(pipe, photo, PredictionSettings(steps)) for steps in STEPS]
    picture = folder / f"{photograph.name}.webp"
    with atomic_write(picture) as temporary:
        row_picture(photo, predictions).save(temporary, format="WEBP", quality=QUALITY, method=6)
    difference = float(np.abs(predictions[0].depth - predictions[1].depth).mean())
    remark = photograph.remark
    if photograph.name == "motorcycle":
        truth = motorcycle().depth
        errors = [score_log_depth(prediction.log_depth, truth)["abs_rel_depth"] for prediction in predictions]
        remark += " Its depth was measured: AbsRel, aligned in depth, is {:.3f} at 1 step and {:.3f} at 2.".format(
            *errors
        )
    section = [
        f"## {photograph.title}: {photograph.verdict}",
        f"![{photograph.title}; its depth at 1 step; at 2 steps]({picture.relative_to(page.parent).as_posix()})",
        wrap(remark),
        wrap(f"{photograph.credit} {photograph.licence} From `{photograph.package}`: `{photograph.file}`."),
    ]
    return "\n\n".join(section), difference


def write_gallery(pipe: DepthFMPipeline, model: str, fingerprint: str, table: Table, page: Path) -> None:
    """Writes the page, and its pictures into the folder of its name without suffix.

    Args:
        pipe: The pipeline.
        model: The model's name.
        fingerprint: `model_fingerprint` of its folder.
        table: The photographs and what is said of them.
        page: The Markdown file to write.
    """
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    sections, rows = [], []
    for photograph in tqdm(table.photographs, desc="Gallery", unit="photograph"):
        section, difference = write_section(pipe, photograph, folder, page)
        sections.append(section)
        rows.append(f"| {photograph.title} | {photograph.verdict} | {difference:.3f} |")
    verdicts = [photograph.verdict for photograph in table.photographs]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS)
    text = [
        "# Gallery",
        wrap(
            "Real photographs that Python packages ship, and their depth. The bundled model was not trained on any of "
            "them. Each row: the photograph, its depth at 1 step, at 2 steps. Red is near, blue is far; each map has "
            "a scale of its own."
        ),
        wrap(
            f"Model: `{model}` (SHA-256 `{fingerprint[:12]}…`), longer side {pipe.default_processing_resolution} "
            "pixels, seed 0, no ensemble. Command: `python benchmarks/quality/gallery.py`."
        ),
        wrap(f"The verdicts are made by eye, not measured. Of {len(verdicts)} photographs: {counts}."),
        "\n".join(wrap(f"- {verdict}: {meaning}.") for verdict, meaning in VERDICTS.items()),
        "## 1 step against 2 steps",
        wrap(table.comparison),
        "\n".join(
            ["| photograph | verdict | mean absolute difference of the two maps, in [0, 1] |", "|---|---|---|", *rows]
        ),
        *sections,
    ]
    if not fingerprint.startswith(table.judged_model):
        text.insert(3, "**The verdicts, the remarks and the comparison were written for another model.**")
    with atomic_write(page) as temporary:
        temporary.write_text("\n\n".join(text) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Writes the gallery."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder (default: the bundled model)")
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "docs" / "gallery.md",
        help="page to write; pictures go beside it, into the folder of its name (default: docs/gallery.md)",
    )
    args = parser.parse_args(argv)
    table = read_table()
    folder = resolve_model(args.model)
    pipe = load_pipeline(folder, "cpu", torch.float32)
    pipe.set_progress_bar_config(disable=True)
    fingerprint = model_fingerprint(folder)
    write_gallery(pipe, folder.resolve().name, fingerprint, table, args.output)
    print(f"written to {args.output}; the model's hash is {fingerprint[:12]}")
    if not fingerprint.startswith(table.judged_model):
        print(f"{TABLE.name} judges another model, {table.judged_model}: look at the pictures and edit it")


if __name__ == "__main__":
    main()
