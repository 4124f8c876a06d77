"""The pictures of `docs/geometry.md`: normals, meshes seen from the side and anaglyphs of two photographs.

    python benchmarks/quality/geometry_pictures.py

The photographs are scikit-image's: `pip install -e '.[gallery]'` installs it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from depthfm_diffusers.checkpoints.model_folder import load_pipeline, resolve_model
from depthfm_diffusers.export.images import normals_picture
from depthfm_diffusers.export.stereo import anaglyph
from depthfm_diffusers.export.surfaces import Surface
from depthfm_diffusers.inference.geometry_files import GeometrySettings, image_geometry
from depthfm_diffusers.inference.metric_files import MetricSettings, measure_image
from depthfm_diffusers.inference.prediction import predict_image
from depthfm_diffusers.utils.files import atomic_write
from depthfm_diffusers.utils.imports import import_optional

ROOT = Path(__file__).resolve().parents[2]
# Name, and metres of the nearest and the farthest point: guessed for the cup, measured for the motorcycle.
PHOTOGRAPHS = {"coffee": (0.3, 0.9), "motorcycle_left": (2.0, 5.3)}
DEGREES = 25.0
# Points per side of a triangle; longest side of a panel and the white between two, in pixels; quality of WebP.
SAMPLES, PANEL, GAP, QUALITY = 3, 400, 8, 80


def side_view(surface: Surface, image: np.ndarray, intrinsics: np.ndarray, degrees: float) -> np.ndarray:
    """Renders a surface from a camera that has gone round it to the right.

    Args:
        surface: The surface.
        image: H×W×3, uint8; its colours.
        intrinsics: 3×3, of the camera of the image and of this one.
        degrees: How far round, about the vertical axis through the middle of its depth.

    Returns:
        H×W×3, uint8; white where there is nothing.
    """
    height, width = surface.shape
    steps = [(i, j, SAMPLES - i - j) for i in range(SAMPLES + 1) for j in range(SAMPLES + 1 - i)]
    weights = np.array(steps, dtype=np.float32) / SAMPLES
    points = np.einsum("kc,fcx->fkx", weights, surface.points[surface.faces]).reshape(-1, 3)
    pixels = np.einsum("kc,fcx->fkx", weights, surface.pixels[surface.faces].astype(np.float32)).reshape(-1, 2)
    middle = np.array([0, 0, np.median(surface.points[:, 2])])
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    points = (points - middle) @ turn.T + middle
    points, pixels = points[points[:, 2] > 0], pixels[points[:, 2] > 0]
    projected = points @ intrinsics.T
    columns, rows = np.rint(projected[:, :2] / projected[:, 2:]).astype(int).T
    seen = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    # From far to near: the last one written stays.
    order = np.flatnonzero(seen)[np.argsort(-points[seen, 2], kind="stable")]
    view = np.full((height, width, 3), 255, dtype=np.uint8)
    source = np.rint(pixels[order]).astype(int)
    view[rows[order], columns[order]] = image[source[:, 0], source[:, 1]]
    return view


def main(argv: list[str] | None = None) -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder (default: the bundled model)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "geometry", help="folder (default: docs/geometry)"
    )
    args = parser.parse_args(argv)
    data = import_optional("skimage.data", "gallery", "The photographs of docs/geometry.md")
    pipe = load_pipeline(resolve_model(args.model), "cpu", torch.float32)
    pipe.set_progress_bar_config(disable=True)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, depth_range in PHOTOGRAPHS.items():
        path = Path(data.__file__).parent / f"{name}.png"
        with Image.open(path) as photo:
            image = np.asarray(photo.convert("RGB"))
        settings = GeometrySettings(depth_range=depth_range)
        log_depth = predict_image(pipe, image).log_depth
        known = measure_image(path, log_depth, (), MetricSettings())
        geometry = image_geometry(log_depth, known, lambda image=image: image, settings)
        arrays = [
            image,
            normals_picture(geometry.normals),
            *(side_view(geometry.surface, image, geometry.intrinsics, side * DEGREES) for side in (-1, 1)),
            anaglyph(*geometry.views),
        ]
        panels = [ImageOps.contain(Image.fromarray(array), (PANEL, PANEL)) for array in arrays]
        width, height = panels[0].size
        row = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height), "white")
        for index, panel in enumerate(panels):
            row.paste(panel, (index * (width + GAP), 0))
        with atomic_write(args.output / f"{name}.webp") as temporary:
            row.save(temporary, format="WEBP", quality=QUALITY, method=6)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
