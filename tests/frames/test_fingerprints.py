"""Fingerprints have the values of release 0.4.0: cached latents, runs and reports from then are still accepted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark_folders import write_folder, write_tar
from helpers.shards import encode

from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark
from depthfm_diffusers.training.data.sources import MixedFrames, open_captioned_images

# Formats whose bytes no library's version changes; of the PNG, the header is all that is read here.
IMAGE = encode(np.zeros((2, 3, 3), np.uint8), "BMP")
DEPTH = encode(np.ones((2, 3), np.float32), "NPY")
PNG_HEADER = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000030000000210000000") + bytes(9)


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_sources(folder: Path) -> None:
    shard, captioned = {}, {}
    for number in range(12):
        metadata = {"scene": f"room {number}", "fov_x_deg": 60.0}
        shard |= {f"k{number}.jpg": IMAGE, f"k{number}.depth.png": PNG_HEADER, f"k{number}.json": lines([metadata])}
        captioned |= {f"k{number}.jpg": IMAGE, f"k{number}.txt": b"a room"}
    write_tar(folder / "shards" / "a.tar", shard, prefix="")
    write_tar(folder / "captioned.tar", captioned, prefix="")
    pairs = {"images/b/1.bmp": IMAGE, "depth/b/1.npy": DEPTH, "images/a.bmp": IMAGE, "depth/a.npy": DEPTH}
    write_folder(folder / "pairs", pairs)
    rows = [{"file_name": "a.bmp", "scene": "a", "depth_scale": 2.0}, {"file_name": "b/1.bmp", "scene": "b"}]
    write_folder(folder / "pairs_with_metadata", pairs | {"metadata.jsonl": lines(rows)})
    names = [{"image_file_name": f"{n}.bmp", "depth_file_name": f"{n}.npy", "scene": n} for n in "ab"]
    files = {f"{n}.bmp": IMAGE for n in "ab"} | {f"{n}.npy": DEPTH for n in "ab"}
    write_folder(folder / "image_folder", files | {"metadata.jsonl": lines(names)})
    rows = [{"file_name": f"{n}.bmp", "text": n} for n in "ab"]
    write_folder(folder / "captions", {f"{n}.bmp": IMAGE for n in "ab"} | {"metadata.jsonl": lines(rows)})
    write_folder(folder / "photos", {"a.bmp": IMAGE, "b/c.bmp": IMAGE})


FRAMES = {
    "shards": "fc043e868137732ff8c585cb6ad13fc286415a850f11dbfc833d8f02e9a141bc",
    "pairs": "b2427b7ea2e715b44a7e971da1f1804f97cd9aceb7f76e379806cc575cf9bec8",
    "pairs_with_metadata": "056c7ca09fd3fca60f2162a936583aa6278de2cc5779d77ce5ca2bf164b89dfd",
    "image_folder": "dea2bd4006182ea59dd54717cc3f35ac58849a60545d3f1c86aaf56f3fc574fd",
}
WITH_SETTINGS = "8e77d3870a10affad16d0b5c70d0d617c812ec35c2ed51d7ab86cc34ef1bbb54"
CAPTIONED = {
    "captioned.tar": "bdb4db469e420a912cf1a714dd809dbe393d71d4dd2c85fc03197437d6020201",
    "captions": "29aa27952682a15ac4d4567d8549fd7a5c73297a98e799ea1d23f23ec83f7bed",
    "photos": "cbc9d5dddac6774b8ac352a211b34ce07776ac9ee6b417d0760b81cf932ae6e3",
    "shards": "089ec2a8bb14a5cd014a2c2d08c9fcbddc17dca20f675784a47579a0d79be727",
}
BENCHMARKS = {
    "pairs pairs": "ad58bb03d0c5b81e463e6192ad20dd9abb6f84849dcb5c7e39dc48e10661bca1",
    "pairs pairs_with_metadata": "af058d498f32921d43f7cb65cdb4c3df30cb3bb656bd6c2f88fc056a66645335",
    "scenes-all shards": "d1331d7f304e0fecbab2175d5e659cf11a09c57ffb0d9cf825f84c727badeff9",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fingerprints")
    write_sources(path)
    return path


@pytest.mark.parametrize("path", FRAMES)
def test_sources_of_frames(folder, path):
    assert MixedFrames.open([str(folder / path)]).fingerprint() == FRAMES[path]


def test_settings_of_a_source_are_part_of_it(folder):
    setting = {"path": str(folder / "pairs"), "weight": 2, "depth_scale": 0.01, "fov_x_deg": 70}
    assert MixedFrames.open([setting]).fingerprint() == WITH_SETTINGS


@pytest.mark.parametrize("path", CAPTIONED)
def test_sources_of_captioned_images(folder, path):
    assert open_captioned_images([str(folder / path)]).fingerprint() == CAPTIONED[path]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(folder, name):
    benchmark, path = name.split(" ")
    assert open_benchmark(load_benchmark(benchmark), folder / path).fingerprint() == BENCHMARKS[name]
