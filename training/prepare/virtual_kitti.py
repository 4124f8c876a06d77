"""Makes WebDataset shards of Virtual KITTI 2 (2.0.3): its images and depth maps as they are, cameras, sky.

    python training/prepare/virtual_kitti.py --rgb_dir vkitti/rgb --depth_dir vkitti/depth --text_dir vkitti/textgt \
        --scenes Scene02 Scene06 Scene18 Scene20 --output shards/vkitti-train

The layout read is that of the published archives, see docs/prepare_data.md. The same command after a kill continues.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prepare_command import HelpFormatter, add_output_options, exit_code, write_prepared
from shard_writer import FrameRejected, Sample, UnusableFrame

from depthfm_diffusers import pictures

SOURCE = {
    "name": "Virtual KITTI 2",
    "version": "2.0.3",
    "homepage": "https://europe.naverlabs.com/research/computer-vision/proxy-virtual-worlds-vkitti-2/",
    "licence": "CC BY-NC-SA 3.0, to be confirmed at the source: not for commercial use",
    "citation": "Cabon, Murray, Humenberger, Virtual KITTI 2, arXiv:2001.10773; Gaidon et al., Virtual Worlds as "
    "Proxy for Multi-Object Tracking Analysis, CVPR 2016",
}
SCENES = ("Scene01", "Scene02", "Scene06", "Scene18", "Scene20")
VARIATIONS = (
    "15-deg-left",
    "15-deg-right",
    "30-deg-left",
    "30-deg-right",
    "clone",
    "fog",
    "morning",
    "overcast",
    "rain",
    "sunset",
)
CAMERAS = (0, 1)
INTRINSIC_COLUMNS = ["frame", "cameraID", "K[0,0]", "K[1,1]", "K[0,2]", "K[1,2]"]

DEPTH_SCALE = 0.01  # one count is a centimetre
SKY_VALUE = 65535


@dataclass(frozen=True)
class KittiFrame:
    """One line of an `intrinsic.txt`: a frame of a camera, and that camera.

    Attributes:
        drive: Such as `Scene01`.
        variation: Such as `clone`.
        camera: 0 (left) or 1 (right).
        number: Number of the frame.
        intrinsics: fx, fy, cx, cy in pixels, pixel centres at integers.
    """

    drive: str
    variation: str
    camera: int
    number: int
    intrinsics: tuple[float, float, float, float]

    @property
    def key(self) -> str:
        """Name in the shard."""
        return f"{self.drive}_{self.variation}_Camera_{self.camera}_{self.number:05d}"

    @property
    def scene(self) -> str:
        """What splits go by: the ten variations and both cameras of a drive show the same places."""
        return f"vkitti2_{self.drive}"

    def path(self, kind: str, suffix: str) -> Path:
        """Path below the folder of an archive, `kind` being `rgb` or `depth`."""
        folder = Path(self.drive) / self.variation / "frames" / kind / f"Camera_{self.camera}"
        return folder / f"{kind}_{self.number:05d}.{suffix}"


def read_intrinsics(root: Path, drive: str, variation: str, cameras: Sequence[int]) -> list[KittiFrame]:
    """Reads the frames of a drive from `intrinsic.txt`, which lists every frame of either camera.

    The principal point is taken as it stands: the file has 620.5, 187 for images of 1242×375 pixels, which is their
    middle if pixel centres are at integers, (W - 1)/2 and (H - 1)/2, the convention of these shards too.

    Args:
        root: Folder of the text archive.
        drive: Such as `Scene01`.
        variation: Such as `clone`.
        cameras: Which of 0 and 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has something else in it, or no frame of a camera.
    """
    path = root / drive / variation / "intrinsic.txt"
    if not path.is_file():
        raise FileNotFoundError(f"--text_dir: {path} does not exist; see --scenes and --variations.")
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or lines[0].split() != INTRINSIC_COLUMNS:
        raise ValueError(f"--text_dir: {path} does not begin with the line {' '.join(INTRINSIC_COLUMNS)!r}.")
    frames = []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split()
        if not words:
            continue
        try:
            frame, camera = int(words[0]), int(words[1])
            fx, fy, cx, cy = map(float, words[2:])
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"--text_dir: {path}, line {number}: {line!r} is not two integers and four numbers."
            ) from error
        if not (fx > 0 and fy > 0 and np.isfinite([fx, fy, cx, cy]).all()):
            raise ValueError(f"--text_dir: {path}, line {number}: {line!r} is not a camera.")
        if camera in cameras:
            frames.append(KittiFrame(drive, variation, camera, frame, (fx, fy, cx, cy)))
    for camera in cameras:
        if not any(frame.camera == camera for frame in frames):
            raise ValueError(f"--text_dir: {path} has no frame of camera {camera}.")
    return frames


def read_picture(root: Path, path: Path, mode: str, wanted: str) -> tuple[bytes, np.ndarray]:
    """Reads a picture and decodes it, to be sure that it can be.

    Args:
        root: Folder of the archive.
        path: File below it.
        mode: Pillow's mode that the picture must have.
        wanted: That mode in words.

    Returns:
        Content of the file, and the pixels.

    Raises:
        UnusableFrame: If the file is missing, broken or of another mode.
    """
    if not (root / path).is_file():
        raise UnusableFrame("missing_file", root, path, "no such file")
    content = (root / path).read_bytes()
    try:
        picture = pictures.read_picture(content, str(root / path)).image
    except pictures.PictureError as error:
        raise UnusableFrame("unreadable_file", root, path, f"not a readable picture ({error.reason})") from error
    if picture.mode != mode:
        raise UnusableFrame("wrong_format", root, path, f"the picture has mode {picture.mode}, not {mode} ({wanted})")
    return content, np.asarray(picture)


def encode_frame(frame: KittiFrame, rgb_root: Path, depth_root: Path) -> Sample:
    """Makes the files of a frame; image and depth keep their bytes.

    Raises:
        FrameRejected: If no pixel has a depth.
        UnusableFrame: If one of its files cannot be used.
    """
    image, pixels = read_picture(rgb_root, frame.path("rgb", "jpg"), "RGB", "8-bit colour")
    depth_path = frame.path("depth", "png")
    depth, counts = read_picture(depth_root, depth_path, "I;16", "16-bit grey")
    if counts.shape != pixels.shape[:2]:
        sizes = f"{counts.shape[1]}x{counts.shape[0]} pixels, its image has {pixels.shape[1]}x{pixels.shape[0]}"
        raise UnusableFrame("wrong_format", depth_root, depth_path, sizes)
    sky = counts == SKY_VALUE
    unknown = counts == 0
    if (sky | unknown).all():
        raise FrameRejected("no_depth", f"{sky.mean():.2%} of the pixels are sky, the others have no depth")
    metadata = {
        "scene": frame.scene,
        "intrinsics": list(frame.intrinsics),
        "depth_scale": DEPTH_SCALE,
        "sky_value": SKY_VALUE,
    }
    return Sample(
        scene=frame.scene,
        files={"jpg": image, "depth.png": depth, "json": json.dumps(metadata).encode()},
        counts={"pixels": counts.size, "pixels_of_sky": int(sky.sum()), "pixels_without_depth": int(unknown.sum())},
    )


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Writes the shards; returns the manifest."""
    frames = [
        frame
        for drive in options.scenes
        for variation in options.variations
        for frame in read_intrinsics(options.text_dir, drive, variation, options.cameras)
    ]
    return write_prepared(
        options,
        "vkitti2",
        frames,
        lambda frame: encode_frame(frame, options.rgb_dir, options.depth_dir),
        settings={
            "scenes": sorted(options.scenes),
            "variations": sorted(options.variations),
            "cameras": sorted(options.cameras),
        },
        source=SOURCE,
        packages=("numpy", "pillow"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    for name, archive in (
        ("rgb", "vkitti_2.0.3_rgb"),
        ("depth", "vkitti_2.0.3_depth"),
        ("text", "vkitti_2.0.3_textgt"),
    ):
        parser.add_argument(
            f"--{name}_dir",
            type=Path,
            required=True,
            metavar="DIR",
            help=f"folder with Scene01 and so on of {archive}",
        )
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES), help="drives to write")
    parser.add_argument("--variations", nargs="+", choices=VARIATIONS, default=list(VARIATIONS), help="to write")
    parser.add_argument("--cameras", nargs="+", type=int, choices=CAMERAS, default=list(CAMERAS), help="to write")
    add_output_options(parser)
    return exit_code(prepare, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
