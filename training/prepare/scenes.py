"""Renders furnished rooms and streets with depth, as WebDataset shards, with Blender's Python module.

    python training/prepare/scenes.py --furniture /usr/share/sweethome3d/furniture --output shards/scenes --scenes 100

Runs in an environment of its own, see docs/render_scenes.md. The same command after a kill continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prepare_command import exit_code, positive_fraction
from scene_rendering.catalogue import Catalogue, read_catalogue, read_model_names
from scene_rendering.pool import RenderedFrame, RenderSettings, ScenePool
from shard_writer import file_sha256, in_random_order, write_shards

PREFIX = "scenes"
MODELS = "models.tsv"
TEXTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
ENVIRONMENT_SUFFIXES = (".exr", ".hdr")
PACKAGES = ("bpy", "numpy", "pillow")


def check_bpy() -> None:
    """Tries to import Blender's module, so that a missing library is told before anything else happens.

    In another process: importing it here would put folders on sys.path in which a rendering process, which inherits
    sys.path, finds another `bpy`.

    Raises:
        ImportError: Saying what to install.
    """
    trial = subprocess.run([sys.executable, "-c", "import bpy"], capture_output=True, text=True, check=False)
    if trial.returncode:
        reason = (trial.stderr.strip().splitlines() or [f"exit status {trial.returncode}"])[-1]
        raise ImportError(
            f"Blender's module cannot be imported ({reason}). It has an environment of its own, with Python 3.11: "
            "pip install -c constraints-render.txt bpy numpy pillow tqdm; and on Debian or Ubuntu: "
            "apt-get install libgl1 libsm6 libxext6 libxfixes3 libxi6 libxkbcommon0 libxrender1"
        )


def list_frames(seed: int, scenes: int, views: int, scenes_per_shard: int) -> list[RenderedFrame]:
    """All frames in the order of the shards: a scene is in one shard only, in which frames are shuffled."""
    frames: list[RenderedFrame] = []
    for start in range(0, scenes, scenes_per_shard):
        numbers = range(start, min(start + scenes_per_shard, scenes))
        shard = [RenderedFrame(seed, scene, view) for scene in numbers for view in range(views)]
        frames.extend(in_random_order(shard, seed))
    return frames


def list_files(folder: Path | None, suffixes: Sequence[str], option: str) -> tuple[Path, ...]:
    """Files of some kinds below a folder, sorted; none without a folder.

    Raises:
        ValueError: If the folder has none.
    """
    if folder is None:
        return ()
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    # Hidden files, and those that macOS adds to archives, are nobody's pictures.
    shown = (path for path in found if not re.search(r"(^|/)(\.|__MACOSX/)", path.relative_to(folder).as_posix()))
    files = tuple(shown)
    if not files:
        raise ValueError(f"--{option}: {folder} has no {', '.join(suffixes)} file.")
    return files


def write_models(output: Path, catalogue: Catalogue) -> int:
    """Writes which models are in the frames, for attribution; returns their number.

    Args:
        output: Folder with the shards; `models.tsv` goes there.
        catalogue: The furniture.
    """
    used: set[str] = set()
    for shard in sorted(output.glob(f"{PREFIX}-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json") and (file := tar.extractfile(member)):
                    used.update(json.load(file)["models"])
    rows = [
        "\t".join((model.id, model.name, model.creator, model.licence))
        for model in catalogue.models
        if model.id in used
    ]
    text = "\n".join(["id\tname\tcreator\tlicence", *rows]) + "\n"
    (output / MODELS).write_text(text, encoding="utf-8")
    return len(rows)


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Renders and writes everything; returns the manifest."""
    check_bpy()
    for name in ("scenes", "views", "scenes_per_shard", "width", "height", "samples", "num_workers"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}.")
    for name in ("seed", "threads"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name} must not be negative, got {getattr(options, name)}.")
    if options.path_frames is not None and options.path_frames < 2:
        raise ValueError(f"--path_frames must be at least 2, got {options.path_frames}.")
    views = options.path_frames or options.views
    catalogue = read_catalogue(
        options.furniture,
        exclude=read_model_names(options.exclude_models) if options.exclude_models else frozenset(),
        only=read_model_names(options.only_models) if options.only_models else None,
    )
    print(f"{len(catalogue.models)} usable models; left out: {catalogue.left_out}")
    settings = RenderSettings(
        catalogue=catalogue,
        seed=options.seed,
        views=views,
        indoor_share=options.indoor_share,
        size=(options.width, options.height),
        samples=options.samples,
        threads=options.threads,
        textures=list_files(options.textures, TEXTURE_SUFFIXES, "textures"),
        environments=list_files(options.environments, ENVIRONMENT_SUFFIXES, "environments"),
        photo_share=options.photo_share,
        moving=options.path_frames is not None,
    )
    frames = list_frames(options.seed, options.scenes, views, options.scenes_per_shard)
    libraries = sorted({model.library for model in catalogue.models})
    with ScenePool(settings, frames, options.num_workers) as pool:
        manifest = write_shards(
            options.output,
            PREFIX,
            frames,
            pool.encode,
            settings={
                "seed": options.seed,
                "scenes": options.scenes,
                "views": views,
                # Absent without a path: folders that were begun by an earlier version go on.
                **({"path_frames": options.path_frames} if options.path_frames else {}),
                "indoor_share": options.indoor_share,
                "photo_share": options.photo_share,
                "width": options.width,
                "height": options.height,
                "samples": options.samples,
                "furniture": {library.name: file_sha256(library) for library in libraries},
                "models": _checksum([model.id for model in catalogue.models]),
                "textures": _checksum([file_sha256(path) for path in settings.textures]),
                "environments": _checksum([file_sha256(path) for path in settings.environments]),
            },
            source={
                "name": "Scenes rendered by training/prepare/scenes.py",
                "furniture": "Sweet Home 3D's libraries, Debian package sweethome3d-furniture",
                "licence": f"CC0 and CC-BY-3.0: see {MODELS} for the authors to name; modified: made opaque, "
                "rescaled, rendered",
            },
            versions={package: version(package) for package in PACKAGES},
            shard_size=options.scenes_per_shard * views,
            num_workers=options.num_workers,
        )
    print(f"{write_models(options.output, catalogue)} models in the frames: {options.output / MODELS}")
    return manifest


def _checksum(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--furniture", type=Path, required=True, metavar="DIR", help="folder with Sweet Home 3D's .sh3f libraries"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for shards and manifest")
    parser.add_argument("--scenes", type=int, default=100, metavar="N", help="rooms and streets")
    parser.add_argument("--views", type=int, default=4, metavar="N", help="frames per scene")
    parser.add_argument(
        "--path_frames",
        type=int,
        metavar="N",
        help="instead of --views: N frames along one smooth camera path per scene, with `camera_to_world` in each "
        "frame's metadata",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random draws: another seed gives other scenes")
    parser.add_argument("--width", type=int, default=256, metavar="PIXELS", help="image width")
    parser.add_argument("--height", type=int, default=192, metavar="PIXELS", help="image height")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="samples per pixel, then denoised")
    parser.add_argument(
        "--indoor_share",
        type=positive_fraction,
        default=2 / 3,
        metavar="SHARE",
        help="share of rooms among the scenes",
    )
    parser.add_argument(
        "--photo_share",
        type=positive_fraction,
        default=0.0,
        metavar="SHARE",
        help="share of scenes composed as photographs: close-ups, single subjects, any camera; the others show rooms "
        "and streets from eye level",
    )
    parser.add_argument(
        "--exclude_models", type=Path, metavar="FILE", help="ids of models to leave out (text, or first column of tsv)"
    )
    parser.add_argument(
        "--only_models", type=Path, metavar="FILE", help="ids of models to use, all others are left out"
    )
    parser.add_argument("--textures", type=Path, metavar="DIR", help="pictures for floors, walls and grounds")
    parser.add_argument("--environments", type=Path, metavar="DIR", help="environment maps, .hdr or .exr")
    parser.add_argument("--scenes_per_shard", type=int, default=50, metavar="N", help="a kill loses at most one shard")
    parser.add_argument("--num_workers", type=int, default=1, metavar="N", help="processes that render")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads of each process, 0 for all")
    return exit_code(prepare, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
