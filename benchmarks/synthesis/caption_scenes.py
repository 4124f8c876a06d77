"""Gives rendered frames a caption, by what their json says of `indoor`.

    python benchmarks/synthesis/caption_scenes.py SHARD.tar ... --output DIR

Writes copies of the shards with a `.txt` beside each json: images and captions for `train_depth_controlnet.py`. The
frames of the scenes that training keeps out are written to `held_out/` as well, a folder of images with their captions
in `metadata.jsonl`.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

from depthfm_diffusers.frames import split_by_scene
from depthfm_diffusers.training.data.sources import open_captioned_images
from depthfm_diffusers.utils.files import atomic_write

CAPTIONS = {True: "a room", False: "a street"}
VALIDATION_FRACTION = 0.05  # the training scripts' default


def caption_shard(source: Path, destination: Path) -> None:
    """Copies a shard with a caption beside each json."""
    with tarfile.open(source) as old, atomic_write(destination) as path, tarfile.open(path, "w") as new:
        for member in old:
            content = old.extractfile(member).read()
            new.addfile(member, io.BytesIO(content))
            if member.name.endswith(".json"):
                caption = CAPTIONS[json.loads(content)["indoor"]].encode()
                added = tarfile.TarInfo(f"{member.name.removesuffix('.json')}.txt")
                added.size = len(caption)
                new.addfile(added, io.BytesIO(caption))


def write_held_out(shards: list[Path], folder: Path) -> int:
    """Writes the held-out frames of captioned shards as PNG files; returns their number."""
    images = open_captioned_images([str(shard) for shard in shards])
    _, held_out = split_by_scene(images.scenes, VALIDATION_FRACTION)
    folder.mkdir(exist_ok=True)
    rows = []
    for index in held_out:
        image = images[index]
        rows.append({"file_name": f"{image.key}.png", "text": image.caption})
        Image.fromarray(image.image).save(folder / f"{image.key}.png")
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return len(rows)


def main(argv: list[str] | None = None) -> None:
    """Runs the program; `argv` defaults to the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", type=Path, help="Rendered scenes, as docs/render_scenes.md makes them.")
    parser.add_argument("--output", required=True, type=Path, help="Folder of the copies.")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    copies = [args.output / shard.name for shard in args.shards]
    for shard, copy in zip(tqdm(args.shards, unit="shard"), copies, strict=True):
        caption_shard(shard, copy)
    count = write_held_out(copies, args.output / "held_out")
    print(f"written to {args.output}: {len(copies)} shards, {count} frames of held-out scenes")


if __name__ == "__main__":
    main()
