"""Data that cannot be scored are refused when a benchmark is opened, by an error that names the file."""

import dataclasses
import io
import sys

import h5py
import numpy as np
import pytest
from helpers.benchmark_folders import (
    colours,
    counts,
    diode_files,
    eth3d_files,
    jpeg,
    kitti_files,
    nyuv2_files,
    scannet_files,
    shortened,
    write_folder,
    write_labeled_mat,
    write_tar,
)
from helpers.shards import encode, png, sloping_frame, write_pairs, write_shard
from PIL import Image, ImageFile

from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark

DEPTH = counts(48, 64, 1500, {})
FRAMES = [sloping_frame(number) for number in range(4)]
SCENE = "scene0011_00"


@pytest.fixture
def scannet(tmp_path):
    """The configuration of a ScanNet of 8 frames, and their files."""
    config = shortened(tmp_path / "lists", "scannet", [f"{SCENE} 0 10 20 30 40 50 60 70"])
    files = {}
    for number in range(0, 80, 10):
        files |= scannet_files(SCENE, number, DEPTH)
    return config, files


def no_picture_is_decoded(monkeypatch):
    """Makes decoding fail: what is checked when data are opened must be in names and headers."""

    def load(*_):
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


# Missing files and counts


def test_missing_files_are_named_and_counted(tmp_path, scannet, monkeypatch):
    config, files = scannet
    no_picture_is_decoded(monkeypatch)
    for name in [name for name in files if "000000" not in name and name.endswith("png")]:
        del files[name]
    message = rf"scannet: 7 of 16 files are not in .*data: {SCENE}/depth/000010\.png, .*000050\.png and 2 more\."
    with pytest.raises(FileNotFoundError, match=message):
        open_benchmark(config, write_folder(tmp_path / "data", files))


def test_a_tar_beside_is_pointed_at(tmp_path, scannet):
    config, files = scannet
    write_tar(tmp_path / "data" / "scannet.tar", files)
    with pytest.raises(FileNotFoundError, match=r"To read scannet\.tar in place, give that file as the root"):
        open_benchmark(config, tmp_path / "data")
    assert len(open_benchmark(config, tmp_path / "data" / "scannet.tar")) == 8


def test_whole_benchmarks_name_what_is_missing(tmp_path):
    for name, files in (("kitti", 1304), ("nyuv2", 1308), ("scannet", 1600)):
        message = rf"Benchmark {name}: none of its {files} files is in .*looked for at"
        with pytest.raises(FileNotFoundError, match=message):
            open_benchmark(load_benchmark(name), tmp_path)
    for name in ("diode", "diode-indoor", "diode-outdoor", "eth3d"):
        with pytest.raises(FileNotFoundError, match=rf"Benchmark {name}: there is no depth file in .*looked for at"):
            open_benchmark(load_benchmark(name), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks images/ \(or rgb/\) or depth/"):
        open_benchmark(load_benchmark("pairs"), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no \.tar file"):
        open_benchmark(load_benchmark("scenes"), tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        open_benchmark(load_benchmark("kitti"), tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"takes a folder of pairs, .*file is a file"):
        open_benchmark(load_benchmark("pairs"), tmp_path / "file")


@pytest.mark.parametrize("number", [1, 3])
def test_too_many_or_too_few_images_are_refused(tmp_path, number):
    depth = np.ones((24, 36), np.float32)
    files = eth3d_files("office", 219, depth) | eth3d_files("office", 220, depth)
    with pytest.raises(ValueError, match=rf"eth3d has {number} images, 2 were found: the first is 'office/DSC_0219'"):
        open_benchmark(dataclasses.replace(load_benchmark("eth3d"), images=number), write_folder(tmp_path, files))


def test_image_without_mask_or_picture_is_named(tmp_path):
    depth, mask = np.ones((768, 1024), np.float32), np.ones((768, 1024))
    files = diode_files("outdoor", 22, 193, "000_000", depth, mask)
    config = dataclasses.replace(load_benchmark("diode-outdoor"), images=1)
    for suffix in ("_depth_mask.npy", ".png"):
        kept = {name: content for name, content in files.items() if not name.endswith(f"000{suffix}")}
        root = write_folder(tmp_path / suffix, kept)
        with pytest.raises(FileNotFoundError, match=rf"1 of 3 files .*00022_00193_outdoor_000_000{suffix}"):
            open_benchmark(config, root)


# Headers


@pytest.mark.parametrize(
    ("what", "content", "message"),
    [
        ("depth", png(DEPTH.astype(np.uint8)), r"has 8 bits per channel and is grey; it must be a 16-bit grey PNG"),
        ("depth", png(colours(48, 64)), r"has 8 bits per channel and is not grey"),
        ("depth", jpeg(colours(48, 64)), r"is not a PNG file"),
        ("depth", b"", r"is not a PNG file"),
        ("color", b"text", r"is not a picture that Pillow can open"),
        ("color", b"", r"is not a picture that Pillow can open"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, scannet, monkeypatch, what, content, message):
    config, files = scannet
    name = f"{SCENE}/{what}/000020.{'png' if what == 'depth' else 'jpg'}"
    root = write_folder(tmp_path / "data", files | {name: content})
    tar = write_tar(tmp_path / "data.tar", files | {name: content})
    no_picture_is_decoded(monkeypatch)
    for place in (root, tar):
        with pytest.raises(ValueError, match=rf"scannet: 1 of 8 images in .* cannot be used: {name} {message}"):
            open_benchmark(config, place)


def test_many_bad_files_are_counted(tmp_path, scannet):
    config, files = scannet
    files = {name: png(DEPTH.astype(np.uint8)) if "depth" in name else content for name, content in files.items()}
    with pytest.raises(ValueError, match=r"8 of 8 images.*000040\.png has 8 bits.* and 3 more"):
        open_benchmark(config, write_folder(tmp_path / "data", files))


def test_sizes_that_do_not_fit_are_named(tmp_path, monkeypatch):
    no_picture_is_decoded(monkeypatch)
    kitti = shortened(tmp_path / "lists", "kitti", ["2011_09_26 0002 6"])
    files = kitti_files("2011_09_26", "0002", 6, counts(375, 1242, 900, {}))
    depth = next(name for name in files if name.startswith("train"))
    with pytest.raises(ValueError, match=r"000006\.png is 1242x375 pixels, train.*000006\.png is 1241x376"):
        open_benchmark(kitti, write_folder(tmp_path / "a", files | {depth: png(counts(376, 1241, 900, {}))}))
    small = kitti_files("2011_09_26", "0002", 6, counts(351, 1216, 900, {}))
    marigold = shortened(tmp_path / "lists", "kitti-marigold", ["2011_09_26 0002 6"])
    with pytest.raises(ValueError, match=r"is 1216x351 pixels, too small for the KITTI benchmark's 1216x352"):
        open_benchmark(marigold, write_folder(tmp_path / "b", small))
    nyu = shortened(tmp_path / "lists", "nyuv2", ["kitchen_0004 1"])
    cropped = write_folder(tmp_path / "c", nyuv2_files("kitchen_0004", 1, counts(427, 561, 900, {})))
    with pytest.raises(ValueError, match=r"rgb_0001\.png is 561x427 pixels, not 640x480"):
        open_benchmark(nyu, cropped)
    with pytest.raises(ValueError, match=r"depth_0001\.png is 561x427 pixels; the crop 'nyu-eigen' is for 640x480"):
        open_benchmark(dataclasses.replace(nyu, image_size=None, intrinsics=None), cropped)
    explicit = dataclasses.replace(nyu, image_size=None, intrinsics=None, crop=(0, 428, 0, 500))
    with pytest.raises(ValueError, match=r"too small for the crop \[0, 428, 0, 500\]"):
        open_benchmark(explicit, cropped)


@pytest.mark.parametrize(
    ("suffix", "array", "message"),
    [
        ("_depth.npy", np.ones((768, 1024, 1), np.int32), "holds int32, not floating point"),
        (
            "_depth.npy",
            np.ones((768, 1024, 3), np.float32),
            r"is an array of shape \(768, 1024, 3\), not HxW or HxWx1",
        ),
        ("_depth.npy", np.ones((767, 1024), np.float32), r"is 1024x768, .*_depth\.npy is 1024x767"),
        ("_depth_mask.npy", np.ones((768, 1023)), r"is 1023x768, .*_depth\.npy is 1024x768"),
        ("_depth_mask.npy", np.full((768, 1024), "a"), "not booleans or integers or floating point"),
        (".png", np.zeros((384, 512, 3), np.uint8), "is 512x384 pixels, not 1024x768"),
    ],
)
def test_arrays_of_another_kind_are_named(tmp_path, suffix, array, message):
    files = diode_files("indoors", 19, 183, "0", np.ones((768, 1024), np.float32), np.ones((768, 1024)))
    name = next(name for name in files if name.endswith(f"_0{suffix}"))
    root = write_folder(tmp_path, files | {name: png(array) if suffix == ".png" else encode(array, "NPY")})
    with pytest.raises(ValueError, match=rf"00019_00183_indoors_0{suffix} .*{message}|{message}"):
        open_benchmark(dataclasses.replace(load_benchmark("diode-indoor"), images=1), root)


def test_arrays_cut_off_are_named(tmp_path):
    files = diode_files("indoors", 19, 183, "0", np.ones((768, 1024), np.float32), np.ones((768, 1024)))
    name = next(name for name in files if name.endswith("_depth.npy"))
    config = dataclasses.replace(load_benchmark("diode-indoor"), images=1)
    for content, message in (
        (files[name][:-1], r"has 3145855 bytes, not the 3145856 of its array"),
        (files[name][:40], r"is not a readable \.npy file"),
        (b"text", r"is not a readable \.npy file"),
    ):
        with pytest.raises(ValueError, match=rf"_depth\.npy {message}"):
            open_benchmark(config, write_folder(tmp_path, files | {name: content}))


def test_bare_numbers_that_are_not_the_images_are_named(tmp_path):
    files = eth3d_files("office", 219, np.ones((24, 36), np.float32))
    name = next(name for name in files if "ground_truth" in name)
    root = write_folder(tmp_path, files | {name: files[name][:-4]})
    with pytest.raises(ValueError, match=r"DSC_0219\.JPG has 3452 bytes, not the 3456 of 36x24 float32"):
        open_benchmark(dataclasses.replace(load_benchmark("eth3d"), images=1), root)


# Content, found when an image is read


@pytest.mark.parametrize("value", [np.nan, -1.0, -np.inf])
def test_values_that_are_no_depth_are_named(tmp_path, value):
    depth = np.ones((24, 36), np.float32)
    depth[3, 4] = value
    root = write_folder(tmp_path, eth3d_files("office", 219, depth))
    data = open_benchmark(dataclasses.replace(load_benchmark("eth3d"), images=1), root)
    with pytest.raises(ValueError, match=r"'office/DSC_0219' of .*1 value\(s\) that are no depth, .*by zero and inf"):
        data[0]


def test_what_a_mask_leaves_out_may_be_anything(tmp_path):
    depth, mask = np.ones((768, 1024), np.float32), np.ones((768, 1024))
    depth[0, :3], mask[0, :2] = (-1, -np.inf, -2), 0
    config = dataclasses.replace(load_benchmark("diode-indoor"), images=1)
    data = open_benchmark(config, write_folder(tmp_path / "a", diode_files("indoors", 19, 183, "0", depth, mask)))
    with pytest.raises(ValueError, match=r"1 value\(s\) that are no depth, such as -2\.0"):
        data[0]
    mask[0, 2] = 0
    root = write_folder(tmp_path / "b", diode_files("indoors", 19, 183, "0", depth, mask))
    assert open_benchmark(config, root)[0].depth[0, :4].tolist() == [0, 0, 0, 1]


def test_damaged_pixels_and_changed_files_are_named(tmp_path, scannet):
    config, files = scannet
    name = f"{SCENE}/depth/000000.png"
    noise = png(np.random.default_rng(0).integers(1, 999, (48, 64)).astype(np.uint16))
    root = write_folder(tmp_path / "data", files | {name: noise[: len(noise) // 2]})
    data = open_benchmark(config, root)
    with pytest.raises(ValueError, match=rf"Frame '{SCENE}/000000' of .*data: {name} is not a readable image"):
        data[0]
    tar = write_tar(tmp_path / "data.tar", files)
    data = open_benchmark(config, tar)
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"000070\.jpg in .*data\.tar has changed, or ends early"):
        data[7]


# Roots


def test_roots_that_are_no_tar_are_named(tmp_path, scannet):
    config, files = scannet
    for name, content in (
        ("a.zip", b"PK\x03\x04" + bytes(999)),
        ("empty.tar", b""),
        ("cut.tar", write_tar(tmp_path / "whole.tar", files).read_bytes()[:3000]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is (empty|cut off)"):
            open_benchmark(config, tmp_path / name)


def test_mat_files_that_are_not_nyuv2s_are_named(tmp_path, monkeypatch):
    config = shortened(tmp_path / "lists", "nyuv2", ["kitchen_0004 1"])
    mat = tmp_path / "nyu_depth_v2_labeled.mat"
    mat.write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(ValueError, match=r"labeled\.mat is cut off or not a Matlab 7\.3 file"):
        open_benchmark(config, tmp_path)
    for arrays, message in (
        ({"images": np.zeros((2, 3, 4, 5), np.uint8)}, r"'images' is uint8 \(2, 3, 4, 5\), not uint8 \(1449, 3, 640"),
        ({"depths": np.zeros(3)}, r"has no array 'images'; it has depths"),
    ):
        with h5py.File(mat, "w") as file:
            for name, array in arrays.items():
                file[name] = array
        with pytest.raises(ValueError, match=message):
            open_benchmark(config, tmp_path)
    depth = np.full((480, 640), 2, np.float32)
    depth[5, 5] = np.nan
    write_labeled_mat(mat, {1: (colours(480, 640), depth)})
    with pytest.raises(ValueError, match=r"rawDepths of frame 1 has negative or not finite values"):
        open_benchmark(config, tmp_path)[0]
    wrong = shortened(tmp_path / "wrong", "nyuv2", ["kitchen_0004 1450"])
    with pytest.raises(ValueError, match=r"nyuv2\.txt: `frame` must be 1 to 1449, got '1450'"):
        open_benchmark(wrong, tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'depthfm_diffusers\[evaluate\]'"):
        open_benchmark(config, tmp_path)


# Pairs and scenes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("depth/frame0001.png", png(DEPTH.astype(np.uint8)), r"depth/frame0001\.png has 8 bits per channel"),
        ("depth/frame0001.png", png(DEPTH[:40]), r"images/frame0001\.png is 64x48 pixels, depth/.* is 64x40"),
        ("images/frame0001.png", b"text", r"images/frame0001\.png is not a picture"),
        ("depth/frame0001.png", encode(np.ones((48, 64, 1), np.float32), "NPY"), r"shape \(48, 64, 1\), not HxW"),
        ("depth/frame0001.png", encode(np.zeros((48, 64), np.uint8), "TIFF"), r"has mode 'L', not 16-bit grey"),
    ],
)
def test_pairs_that_cannot_be_used_are_named(tmp_path, monkeypatch, name, content, message):
    folder = write_pairs(tmp_path / "own", FRAMES)
    (folder / name).write_bytes(content)
    no_picture_is_decoded(monkeypatch)
    with pytest.raises(ValueError, match=rf"pairs: 1 of 4 images in .*own cannot be used: .*{message}"):
        open_benchmark(load_benchmark("pairs"), folder)


def test_pairs_without_partner_are_named(tmp_path):
    folder = write_pairs(tmp_path / "own", FRAMES)
    (folder / "depth" / "frame0003.png").unlink()
    with pytest.raises(ValueError, match=r"1 file\(s\) have no partner .*images/frame0003\.png"):
        open_benchmark(load_benchmark("pairs"), folder)
    with pytest.raises(ValueError, match="Benchmark pairs: no image was found"):
        open_benchmark(load_benchmark("pairs"), write_pairs(tmp_path / "none", []))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth.png": None}, r"Frame 'frame0001' of .*a\.tar: has no depth\.png"),
        ({"png": None}, r"Frame 'frame0001' of .*a\.tar: has no image"),
        ({"json": None}, r"Frame 'frame0001' of .*a\.tar has no json"),
        ({"jpg": jpeg(colours(48, 64))}, r"several images, \['png', 'jpg'\]"),
        ({"depth.png": png(DEPTH.astype(np.uint8))}, r"frame0001\.depth\.png has 8 bits per channel"),
        ({"png": png(colours(40, 64))}, r"frame0001\.png is 64x40 pixels, frame0001\.depth\.png is 64x48"),
    ],
)
def test_scenes_that_cannot_be_used_are_named(tmp_path, monkeypatch, changes, message):
    frame = {name: content for name, content in (FRAMES[1] | changes).items() if content is not None}
    write_shard(tmp_path / "a.tar", [FRAMES[0], frame, FRAMES[2]])
    no_picture_is_decoded(monkeypatch)
    with pytest.raises(ValueError, match=message):
        open_benchmark(load_benchmark("scenes-all"), tmp_path)


def test_scenes_without_any_held_out_and_frames_of_one_name_are_refused(tmp_path):
    write_shard(tmp_path / "a.tar", FRAMES[:1])
    config = dataclasses.replace(load_benchmark("scenes"), held_out_fraction=1e-9)
    with pytest.raises(ValueError, match=r"no scene in .* holds out"):
        open_benchmark(config, tmp_path)
    write_shard(tmp_path / "b.tar", FRAMES[:1])
    with pytest.raises(ValueError, match=r"several images are called frame0000"):
        open_benchmark(load_benchmark("scenes-all"), tmp_path)


def test_all_of_a_header_is_in_the_part_that_is_read(tmp_path, scannet):
    """A picture's size may come after a long block of other data, as in photographs with a preview."""
    config, files = scannet
    buffer = io.BytesIO()
    comment = {"comment": b"x" * 60000}
    Image.fromarray(colours(48, 64)).save(buffer, format="JPEG", **comment)
    name = f"{SCENE}/color/000000.jpg"
    tar = write_tar(tmp_path / "data.tar", files | {name: buffer.getvalue()})
    assert open_benchmark(config, tar)[0].image.shape == (48, 64, 3)
