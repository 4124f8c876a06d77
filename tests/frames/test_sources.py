"""Sources of frames with depth: every format gives the same frames, and what is refused."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import socket
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.shards import (
    assert_same_frames,
    encode,
    png,
    sloping_frame,
    write_image_folder,
    write_pairs,
    write_parquet,
    write_shard,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from depthfm_diffusers.frames import FrameError, SourceConfig, open_source
from depthfm_diffusers.frames.shards import index_shard

FRAMES = [sloping_frame(n, 16, 32 + 8 * n) for n in range(4)]


def open_path(path: Path, streaming: bool = False, **config):
    return open_source(SourceConfig(str(path), **config), streaming)


def write_all(folder: Path, frames: list[dict[str, bytes]]) -> dict[str, Path]:
    return {
        "webdataset": write_shard(folder / "a.tar", frames),
        "parquet": write_parquet(folder / "a.parquet", frames),
        "imagefolder": write_image_folder(folder / "imagefolder", frames),
        "pairs": write_pairs(folder / "pairs", frames, metadata=True),
    }


CAMERAS = st.one_of(
    st.just({}),
    st.floats(1, 179).map(lambda fov: {"fov_x_deg": fov}),
    st.lists(st.floats(0.5, 1e4), min_size=4, max_size=4).map(lambda k: {"intrinsics": k}),
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), CAMERAS, st.booleans(), st.text("äb c/")
        ),
        min_size=1,
        max_size=4,
    )
)
def test_every_format_gives_the_same_frames(tmp_path_factory, drawn):
    frames = []
    for seed, height, width, camera, with_sky, name in drawn:
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        depth = rng.choice(np.array([0, 1, 999, 65534, 65535], np.uint16), (height, width))
        metadata = (
            {"scene": f"room {name}", "depth_scale": 0.002} | camera | ({"sky_value": 65535} if with_sky else {})
        )
        frames.append({"png": png(image), "depth.png": png(depth), "json": json.dumps(metadata).encode()})
        expected = np.where(depth == 65535, 0, depth) if with_sky else depth
        frames[-1]["expected"] = (image, (expected * 0.002).astype(np.float32))
    expected = [frame.pop("expected") for frame in frames]
    opened = {kind: open_path(path) for kind, path in write_all(tmp_path_factory.mktemp("formats"), frames).items()}
    for source in opened.values():
        assert len(source) == len(frames)
        assert source.scenes == [f"room {name}" for *_, name in drawn]
        assert source.has_intrinsics == all(camera for _, _, _, camera, _, _ in drawn)
        assert source.groups is None
        for index, (image, depth) in enumerate(expected):
            frame = source[index]
            np.testing.assert_array_equal(frame.image, image)
            np.testing.assert_array_equal(frame.depth, depth)
            assert_same_frames(frame, opened["webdataset"][index])


# What is at a path


def test_formats_are_told_apart(tmp_path):
    paths = write_all(tmp_path, FRAMES[:2])
    kinds = {kind: type(open_path(path).reader).__name__ for kind, path in paths.items()}
    assert kinds == {
        "webdataset": "ShardReader",
        "parquet": "TableReader",
        "imagefolder": "TableReader",
        "pairs": "PairReader",
    }
    for kind, path in paths.items():
        assert len(open_path(path, format=kind)) == 2
    for suffix in ("tar", "parquet"):
        (tmp_path / suffix).mkdir()
        os.link(tmp_path / f"a.{suffix}", tmp_path / suffix / f"b.{suffix}")
        assert len(open_path(tmp_path / suffix)) == 2
        assert len(open_path(f"{tmp_path}/*/?.{suffix}")) == 2


def test_formats_that_cannot_be_told_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is of no known format"):
        open_path(tmp_path)
    (tmp_path / "a.zip").touch()
    with pytest.raises(ValueError, match=r"a\.zip is of no known format. Known are \.tar files"):
        open_path(tmp_path / "a.zip")
    paths = write_all(tmp_path, FRAMES[:1])
    with pytest.raises(ValueError, match=r"could be any of \['imagefolder', 'parquet', 'webdataset'\].*set format"):
        open_path(tmp_path)
    assert len(open_path(tmp_path, format="webdataset")) == 1
    with pytest.raises(ValueError, match=r"a\.tar is not a \.parquet file"):
        open_path(paths["webdataset"], format="parquet")
    with pytest.raises(ValueError, match="takes a folder"):
        open_path(paths["webdataset"], format="pairs")


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar: there is no such file"):
        open_path(tmp_path / "nowhere.tar")
    with pytest.raises(FileNotFoundError, match=r"no-\*\.tar: there is no such file"):
        open_path(tmp_path / "no-*.tar")
    for kind, message in (
        ("webdataset", r"no \.tar file"),
        ("parquet", r"no \.parquet file"),
        ("imagefolder", r"none of metadata\.csv"),
        ("pairs", r"lacks images/ \(or rgb/\) or depth/"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            open_path(tmp_path, format=kind)


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_a_test_split_does_not_slip_in(tmp_path, suffix):
    for name in ("train-0", "train-1", "test-0"):
        (write_shard if suffix == ".tar" else write_parquet)(tmp_path / (name + suffix), FRAMES[:1])
    with pytest.raises(ValueError, match=r"several splits, \['test', 'train'\].*test-0.*train-\*"):
        open_path(tmp_path)
    assert len(open_path(f"{tmp_path}/train-*")) == 2
    assert len(open_path(tmp_path / f"test-0{suffix}")) == 1


# Settings


def test_settings_are_parsed():
    assert SourceConfig.parse("a.tar") == SourceConfig("a.tar")
    config = SourceConfig.parse({"path": "a", "weight": 2, "format": "pairs", "depth_scale": 0.01})
    assert (config.weight, config.format, config.depth_scale) == (2, "pairs", 0.01)
    assert SourceConfig.parse({"path": ["a", "b"]}).paths == ("a", "b")


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"path": "a", "wieght": 2}, ValueError, r"unknown setting\(s\) \['wieght'\]; there are \['path', 'weight'"),
        ({"weight": 2}, ValueError, "path is missing"),
        ({"path": ""}, ValueError, "path is empty"),
        ({"path": []}, ValueError, "path is empty"),
        ({"path": 3}, TypeError, "path must be text"),
        (["a"], TypeError, "is a path or a mapping"),
        ({"path": "a", "weight": 0}, ValueError, "Data source a: weight must be above 0 and below inf, got 0"),
        ({"path": "a", "weight": float("nan")}, ValueError, "weight must be above 0"),
        ({"path": "a", "weight": float("inf")}, ValueError, "weight must be above 0"),
        ({"path": "a", "weight": "2"}, TypeError, "weight must be a number"),
        ({"path": "a", "weight": None}, TypeError, "weight must be a number"),
        ({"path": "a", "weight": True}, TypeError, "weight must be a number"),
        ({"path": "a", "depth_scale": -1}, ValueError, "depth_scale must be above 0"),
        ({"path": "a", "fov_x_deg": 180}, ValueError, "fov_x_deg must be above 0 and below 180"),
        ({"path": "a", "format": "lmdb"}, ValueError, "format must be one of .*'pairs'.* got 'lmdb'"),
        ({"path": "a", "image_column": 1}, TypeError, "image_column must be text"),
    ],
)
def test_bad_settings_are_named(setting, error, message):
    with pytest.raises(error, match=message):
        SourceConfig.parse(setting)


def test_settings_replace_what_frames_say(tmp_path):
    path = write_shard(tmp_path / "a.tar", FRAMES[:1])
    plain, changed = open_path(path), open_path(path, depth_scale=0.01, fov_x_deg=90, sky_value=0)
    np.testing.assert_allclose(changed[0].depth, plain[0].depth * 10, rtol=1e-6)
    np.testing.assert_array_equal(changed[0].sky, plain[0].depth == 0)
    assert changed[0].intrinsics[0, 0] == pytest.approx(16)
    with_k = FRAMES[0] | {"json": json.dumps({"scene": 1, "intrinsics": [7, 8, 9, 10]}).encode()}
    path = write_shard(tmp_path / "b.tar", [with_k])
    assert open_path(path)[0].intrinsics[1, 1] == 8
    assert open_path(path, fov_x_deg=90)[0].intrinsics[1, 1] == pytest.approx(16)


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "imagefolder", "pairs"])
def test_has_intrinsics(tmp_path, kind):
    without = FRAMES[1] | {"json": json.dumps({"scene": 1}).encode()}
    path = write_all(tmp_path, [FRAMES[0], without])[kind]
    assert not open_path(path).has_intrinsics
    assert open_path(path, fov_x_deg=70.0).has_intrinsics
    (tmp_path / "full").mkdir()
    assert open_path(write_all(tmp_path / "full", FRAMES)[kind]).has_intrinsics


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "imagefolder", "pairs"])
def test_fingerprint_follows_content_and_settings_alone(tmp_path, kind):
    fingerprints = []
    for number, frames in enumerate([FRAMES, FRAMES, [*FRAMES[:3], FRAMES[0]]]):
        (tmp_path / str(number)).mkdir()
        path = write_all(tmp_path / str(number), frames)[kind]
        fingerprints.append(open_path(path).fingerprint())
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert open_path(path, weight=3).fingerprint() == fingerprints[2]
    assert open_path(path, depth_scale=0.01).fingerprint() != fingerprints[2]


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "imagefolder", "pairs"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth.png": png(np.zeros((10, 10), np.uint16))}, "Frame .* is 40x16 pixels, .* is 10x10"),
        ({"png": b"no picture"}, "Frame .* is not a readable image"),
        ({"json": json.dumps({"scene": 1, "fov_x_deg": 0.0}).encode()}, "Frame .*fov_x_deg is 0.0"),
    ],
)
def test_unusable_frame_is_named_and_the_others_can_be_read(tmp_path, kind, change, message):
    source = open_path(write_all(tmp_path, [FRAMES[0], FRAMES[1] | change, FRAMES[2]])[kind])
    with pytest.raises(FrameError, match=message) as caught:
        source[1]
    assert str(tmp_path) in str(caught.value)
    assert source.keys[1] in str(caught.value)
    assert source[0].depth.any()
    assert source[2].depth.any()
    assert_same_frames(source[-1], source[2])
    with pytest.raises(IndexError):
        source[3]


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "imagefolder", "pairs"])
@pytest.mark.parametrize("value", [None, ""])
def test_frame_without_scene_is_named(tmp_path, kind, value):
    without = FRAMES[1] | {"json": json.dumps({"fov_x_deg": 60.0, "scene": value}).encode()}
    frames = [FRAMES[0] | {"json": json.dumps({"fov_x_deg": 60.0, "scene": "a"}).encode()}, without]
    path = write_all(tmp_path, frames)[kind]
    with pytest.raises(ValueError, match=r"frame0001|a:1") as caught:
        open_path(path)
    assert "has no 'scene'" in str(caught.value)
    assert not isinstance(caught.value, FrameError)


@pytest.mark.parametrize("kind", ["parquet", "imagefolder", "pairs"])
def test_without_scenes_each_frame_is_one_and_that_is_said(tmp_path, kind, caplog):
    frames = [frame | {"json": json.dumps({"fov_x_deg": 60.0}).encode()} for frame in FRAMES]
    path = write_all(tmp_path, frames)[kind]
    with caplog.at_level(logging.WARNING):
        source = open_path(path)
    assert len(set(source.scenes)) == 4
    assert "does not say which frames show the same scene" in caplog.text


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "imagefolder", "pairs"])
def test_nothing_is_printed(tmp_path, kind, capfd):
    path = write_all(tmp_path, FRAMES)[kind]
    capfd.readouterr()
    open_path(path)[0]
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_no_hub_is_reached_for(tmp_path, kind, monkeypatch):
    path = write_all(tmp_path, FRAMES)[kind]
    tried = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: tried.append(address))
    assert open_path(path)[0].depth.any()
    assert not tried


# Shards


def test_shards_are_read_in_order_and_numbered(tmp_path):
    for name, frames in (("b.tar", FRAMES[:3]), ("a.tar", FRAMES[3:])):
        write_shard(tmp_path / name, frames)
    source = open_path(tmp_path, streaming=True)
    assert source.groups.tolist() == [0, 1, 1, 1]
    assert source.scenes == ["1", "0", "0", "1"]
    assert open_path(tmp_path).groups is None
    assert_same_frames(source[3], open_path(tmp_path)[3])


@given(cut=st.floats(0, 1))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shard_cut_off_anywhere_is_named(tmp_path, cut):
    whole = write_shard(tmp_path / "whole.tar", FRAMES[:2]).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        last = tar.getmembers()[-1]
    needed = last.offset_data + last.size
    path = tmp_path / "cut.tar"
    path.write_bytes(whole[: int(cut * needed)])
    with pytest.raises(ValueError, match=r"The tar file .*cut\.tar is (empty|cut off)"):
        open_path(path)


def test_shard_cut_off_between_two_files_is_named(tmp_path):
    whole = write_shard(tmp_path / "a.tar", FRAMES)
    with tarfile.open(whole) as tar:
        offset = tar.getmembers()[6].offset
    content = whole.read_bytes()
    whole.write_bytes(content[:offset])
    with pytest.raises(ValueError, match=rf"a\.tar is cut off or damaged: no file and no end mark at byte {offset}"):
        open_path(whole)
    whole.write_bytes(content[:offset] + b"x" * 512 + content[offset + 512 :])
    with pytest.raises(ValueError, match=rf"at byte {offset}"):
        open_path(whole)


def test_what_is_no_shard_is_named(tmp_path):
    path = tmp_path / "a.tar"
    path.touch()
    with pytest.raises(ValueError, match=r"The tar file .*a\.tar is empty"):
        open_path(path)
    path.write_bytes(b"text " * 999)
    with pytest.raises(ValueError, match=r"a\.tar is cut off, damaged, compressed or none at all"):
        open_path(path)
    with pytest.raises(ValueError, match="has no frame"):
        open_path(write_shard(path, []))


def test_missing_columns_are_named(tmp_path):
    frames = [{k: v for k, v in frame.items() if k != "depth.png"} for frame in FRAMES[:2]]
    path = write_shard(tmp_path / "a.tar", frames)
    with pytest.raises(ValueError, match=r"no sample has depth \(depth\.png\); there are \['png', 'json'\]"):
        open_path(path)
    with pytest.raises(ValueError, match=r"no sample has an image \(jpeg\); there are"):
        open_path(path, image_column="jpeg")
    path = write_shard(tmp_path / "b.tar", [FRAMES[0], frames[1]])
    with pytest.raises(FrameError, match=r"Frame 'frame0001' of .*b\.tar: has no depth\.png"):
        open_path(path)[1]
    path = write_parquet(tmp_path / "a.parquet", FRAMES)
    with pytest.raises(ValueError, match=r"no column 'rgb', but \['image', 'depth', .*set image_column"):
        open_path(path, image_column="rgb")
    with pytest.raises(ValueError, match=r"no column 'depth_map', but .*set depth_column"):
        open_path(path, depth_column="depth_map")


def test_other_columns_can_be_chosen(tmp_path):
    metres = np.full((16, 32), 1.5, np.float32)
    frame = FRAMES[0] | {"webp": FRAMES[0]["png"], "depth.npy": encode(metres, "NPY")}
    path = write_shard(tmp_path / "a.tar", [frame])
    with pytest.raises(ValueError, match=r"'frame0000' of .* has several images, \['webp', 'png'\]: set image_column"):
        open_path(path)
    assert (open_path(path, image_column="png", depth_column="depth.npy")[0].depth == 1.5).all()
    table = datasets.Dataset.from_parquet(str(write_parquet(tmp_path / "a.parquet", FRAMES)))
    table.rename_columns({"image": "rgb", "depth": "z"}).to_parquet(tmp_path / "b.parquet")
    source = open_path(tmp_path / "b.parquet", image_column="rgb", depth_column="z")
    assert_same_frames(source[0], open_path(tmp_path / "a.parquet")[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"json": b"{"}, "'frame0000' of .*: its json cannot be read"),
        ({"json": b"[]"}, "'frame0000' of .*: its json is list, not an object"),
        ({"json": None}, "'frame0000' of .* has no json"),
    ],
)
def test_shard_with_broken_metadata_is_named(tmp_path, change, message):
    frame = {k: v for k, v in (FRAMES[0] | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        open_path(write_shard(tmp_path / "a.tar", [frame]))


def test_metadata_may_differ_between_frames_of_a_shard(tmp_path):
    """`datasets` takes the fields of the first five frames for those of all."""
    late = FRAMES[0] | {"json": json.dumps({"scene": "room", "intrinsics": [7, 8, 9, 10], "sky_value": 0}).encode()}
    frame = open_path(write_shard(tmp_path / "a.tar", [FRAMES[0]] * 6 + [late]))[6]
    assert frame.scene == "room"
    assert frame.intrinsics[0, 0] == 7
    assert frame.sky.any()


def test_frame_in_two_places_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.png", "b.png", "a.json"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match="holds frame 'a' in two places"):
        list(index_shard(path))
    with tarfile.open(path, "w") as tar:
        for name in ("a.png", "a.png"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match=r"holds 'a\.png' twice"):
        list(index_shard(path))


def test_names_in_a_shard(tmp_path):
    """Folders, long names, names of macOS and members that are no files do not disturb the index."""
    long = "x" * 150
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("./set.v2")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("./set.v2/._a.png", "./set.v2/a.png", "./set.v2/a.depth.png", f"é{long}.json", "README"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(name[-3:].encode()))
    content = path.read_bytes()
    found = dict(index_shard(path))
    assert {key: list(members) for key, members in found.items()} == {
        "./set.v2/a": ["png", "depth.png"],
        f"é{long}": ["json"],
    }
    span = found[f"é{long}"]["json"]
    assert content[span.offset : span.offset + span.size] == b"son"


@pytest.mark.parametrize("streaming", [False, True])
def test_shard_that_is_written_anew_is_not_read_at_the_old_places(tmp_path, streaming):
    path = write_shard(tmp_path / "a.tar", FRAMES)
    source = open_path(path, streaming)
    source[0]
    write_shard(path, FRAMES[::-1])
    os.utime(path, (1, 1))
    with pytest.raises(ValueError, match=r"a\.tar has changed since it was opened") as caught:
        source[0]
    assert not isinstance(caught.value, FrameError)


class Sums(Dataset):
    """Defined here so that spawned workers can import it."""

    def __init__(self, frames: Dataset) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> float:
        frame = self.frames[index]
        return float(frame.image.sum()) + float(frame.depth.sum())


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same(tmp_path, context):
    frames = ConcatDataset([open_path(path, True) for path in write_all(tmp_path, FRAMES).values()])
    here = [Sums(frames)[i] for i in range(len(frames))]
    loader = DataLoader(Sums(frames), batch_size=None, num_workers=1, multiprocessing_context=context)
    assert [float(value) for value in loader] == here


def test_sources_can_be_pickled(tmp_path):
    for path in write_all(tmp_path, FRAMES).values():
        source = open_path(path, streaming=True)
        source[0]
        assert_same_frames(pickle.loads(pickle.dumps(source))[1], source[1])


# Parquet and image folders


@pytest.mark.parametrize("keep_times", [False, True])
def test_rewritten_parquet_is_not_taken_from_the_cache(tmp_path, keep_times):
    path = write_parquet(tmp_path / "a.parquet", FRAMES)
    status = path.stat()
    assert open_path(path)[0].image.shape == (16, 32, 3)
    write_parquet(path, FRAMES[::-1])
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_path(path)[0].image.shape == (16, 56, 3)


@pytest.mark.parametrize("keep_times", [False, True])
def test_rewritten_metadata_are_not_taken_from_the_cache(tmp_path, keep_times):
    folder = write_image_folder(tmp_path / "a", FRAMES)
    path = folder / "metadata.jsonl"
    status = path.stat()
    assert open_path(folder).scenes[0] == "0"
    path.write_text(path.read_text().replace('"scene": 0', '"scene": 7'))
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_path(folder).scenes[0] == "7"


def test_parquet_with_bytes_or_paths(tmp_path):
    (tmp_path / "pictures").mkdir()
    names = [f"pictures/{n}.png" for n in range(4)]
    for name, frame in zip(names, FRAMES, strict=True):
        (tmp_path / name).write_bytes(frame["depth.png"])
    images = [frame["png"] for frame in FRAMES]
    expected = open_path(write_parquet(tmp_path / "a.parquet", FRAMES))
    path = write_parquet(tmp_path / "b.parquet", FRAMES, image=images, depth=names)
    source = open_path(path)
    for index in range(4):
        assert_same_frames(source[index], expected[index])
    before = source.fingerprint()
    (tmp_path / names[3]).write_bytes(FRAMES[0]["depth.png"])
    assert open_path(path).fingerprint() != before
    (tmp_path / names[0]).unlink()
    with pytest.raises(FrameError, match=r"Frame 'b:0' of .*b\.parquet: depth: cannot read pictures/0\.png"):
        open_path(path)[0]
    open_path(path).fingerprint()
    path = write_parquet(tmp_path / "c.parquet", FRAMES, depth=[None, *images[1:]])
    with pytest.raises(FrameError, match=r"'c:0' .* depth is missing"):
        open_path(path)[0]
    path = write_parquet(tmp_path / "d.parquet", FRAMES, depth=[[[1.0]]] * 4)
    with pytest.raises(FrameError, match=r"'d:0' .* depth is list, not an image"):
        open_path(path)[0]


def test_bad_parquet_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", FRAMES)
    content = path.read_bytes()
    for bad in (b"", b"PAR1", content[:-5], content[:300]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"a\.parquet is empty, cut off or not a Parquet file"):
            open_path(path)
    path.write_bytes(content)
    write_parquet(tmp_path / "b.parquet", FRAMES, more=[1] * 4)
    with pytest.raises(ValueError, match=rf"Data source {tmp_path} cannot be read: "):
        open_path(tmp_path)


def test_parquet_keys_name_file_and_row(tmp_path):
    for name in "ab":
        write_parquet(tmp_path / f"{name}.parquet", FRAMES[:2])
    source = open_path(tmp_path)
    assert [source[i].key for i in range(4)] == ["a:0", "a:1", "b:0", "b:1"]


def test_image_folder_of_folders(tmp_path):
    """Each has its own metadata; a scene that is called `test` is no split."""
    for name in ("attic", "test_hall"):
        write_image_folder(tmp_path / name, FRAMES[:2])
    with pytest.raises(ValueError, match="several splits"):
        open_path(tmp_path)
    (tmp_path / "test_hall").rename(tmp_path / "hall")
    source = open_path(tmp_path)
    assert source.keys == [f"{name}/frame000{n}.png" for name in ("attic", "hall") for n in range(2)]
    assert_same_frames(source[3], open_path(tmp_path / "attic")[1])


def test_image_folder_with_csv_and_file_name(tmp_path):
    folder = write_image_folder(tmp_path / "a", FRAMES[:2])
    expected = [open_path(folder)[n] for n in range(2)]
    (folder / "metadata.jsonl").unlink()
    rows = [f"frame000{n}.png,frame000{n}_depth.png,0,60.0\n" for n in range(2)]
    (folder / "metadata.csv").write_text("file_name,depth_file_name,scene,fov_x_deg\n" + "".join(rows))
    source = open_path(folder)
    for index in range(2):
        assert_same_frames(source[index], expected[index])
    (folder / "metadata.csv").write_text("file,scene\na.png,1\n")
    with pytest.raises(ValueError, match=r"Data source .*a cannot be read: `file_name`"):
        open_path(folder)
    (folder / "metadata.csv").write_text("image_file_name,scene\nframe0000.png,1\n")
    with pytest.raises(ValueError, match=r"no column 'depth', but \['image', 'scene'\]"):
        open_path(folder)


# Pairs


def farthest(frame: dict[str, bytes]) -> int:
    return int(np.asarray(Image.open(io.BytesIO(frame["depth.png"]))).max())


def test_pairs_need_no_metadata(tmp_path):
    folder = write_pairs(tmp_path / "mine", FRAMES, images="rgb")
    source = open_path(folder)
    assert source.scenes == source.keys == [f"frame000{n}" for n in range(4)]
    assert not source.has_intrinsics
    assert source[0].intrinsics is None
    assert source[0].depth.max() == pytest.approx(farthest(FRAMES[0]) / 1000)


def test_pairs_with_npy_csv_and_subfolders(tmp_path):
    metres = np.full((16, 32), 1.5, np.float32)
    folder = write_pairs(tmp_path / "mine", [FRAMES[0] | {"depth.npy": encode(metres, "NPY")}, FRAMES[1]])
    for part in ("images", "depth"):
        (folder / part / "hall").mkdir()
        (folder / part / "frame0001.png").rename(folder / part / "hall" / "v1.5.png")
        (folder / part / ".DS_Store").touch()
    lines = (
        "\ufefffile_name,scene,fov_x_deg,intrinsics,depth_scale",
        "frame0000.png,a,70,,",
        'images/hall/v1.5,b,,"[7, 8, 9, 10]",0.01',
    )
    (folder / "metadata.csv").write_text("\n".join(lines))
    source = open_path(folder)
    assert source.keys == ["frame0000", "hall/v1.5"]
    assert source.scenes == ["a", "b"]
    assert source.has_intrinsics
    assert (source[0].depth == 1.5).all()
    assert source[1].intrinsics[1, 1] == 8
    assert source[1].depth.max() == pytest.approx(farthest(FRAMES[1]) / 100)


def test_files_without_partner_are_named(tmp_path):
    folder = write_pairs(tmp_path / "mine", FRAMES)
    (folder / "depth" / "frame0001.png").rename(folder / "depth" / "frame1.png")
    with pytest.raises(ValueError, match=r"2 file\(s\) have no partner .*images/frame0001\.png, .*depth/frame1\.png"):
        open_path(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("images/notes.txt", r"1 file\(s\) in .*images are none of \.png.*notes\.txt"),
        ("depth/frame0000.npy", r"frame0000\.npy and .*frame0000\.png have the same name"),
        ("rgb/a.png", r"has both images/ and rgb/"),
        ("metadata.csv", r"has both metadata\.csv and metadata\.jsonl"),
    ],
)
def test_unexpected_files_in_pairs_are_named(tmp_path, name, message):
    folder = write_pairs(tmp_path / "mine", FRAMES, metadata=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_path(folder, format="pairs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scene\na\n", r"metadata\.csv, row 1 has no 'file_name' but \['scene'\]"),
        ("file_name,scene\nb.png,a\n", r"row 1: there is no image 'b\.png' in images/"),
        ("file_name,scene\nframe0000.png,a\nframe0000.png,a\n", r"row 2: 'frame0000\.png' was in an earlier row"),
        ("file_name,scene\nframe0000.png,a\n", r"has no row for 1 image\(s\): .*frame0001\.png"),
        ("file_name,scene\nframe0000.png,a,b\n", r"row 1 does not fit the columns"),
        ('file_name,scene\n"frame0000.png,a\n', r"metadata\.csv cannot be read"),
        ("file_name,scene\nframe0000,a\nframe0001,\n", r"'frame0001' of .*metadata\.csv has no 'scene'"),
    ],
)
def test_metadata_that_do_not_fit_are_named(tmp_path, text, message):
    folder = write_pairs(tmp_path / "mine", FRAMES[:2])
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_path(folder)
