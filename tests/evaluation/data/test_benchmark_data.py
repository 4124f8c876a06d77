"""What is read from each benchmark's files, against values worked out by hand."""

import dataclasses
import pickle

import numpy as np
import pytest
from helpers.benchmark_folders import (
    colours,
    counts,
    diode_files,
    eth3d_files,
    kitti_files,
    nyuv2_files,
    scannet_files,
    shortened,
    write_folder,
    write_labeled_mat,
    write_tar,
)
from helpers.shards import encode, png, sloping_frame, write_pairs, write_shard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark
from depthfm_diffusers.frames import split_by_scene

FRAMES = [sloping_frame(number) for number in range(4)]
NYU_ROWS = ["kitchen_0004 2", "office_0005 9"]


# NYUv2


def nyu_depth() -> np.ndarray:
    """2 m; the corners of the crop and the pixels around them, and values at the range's ends, differ."""
    inside = {(45, 41): 1000, (470, 600): 3000, (100, 100): 0, (100, 101): 1, (100, 102): 2, (100, 103): 9999}
    outside = {(44, 41): 1500, (45, 40): 1500, (471, 600): 1500, (470, 601): 1500, (100, 104): 10000}
    return counts(480, 640, 2000, inside | outside)


def check_nyu(sample):
    assert sample.image.shape == (480, 640, 3)
    assert sample.image.dtype == np.uint8
    assert sample.depth.dtype == np.float32
    assert sample.valid.dtype == bool
    assert sample.depth[45, 41] == 1.0
    assert sample.depth[470, 600] == 3.0
    assert sample.depth[100, 100] == 0.0
    assert sample.depth[100, 103] == np.float32(9.999)
    valid = np.zeros((480, 640), bool)
    valid[45:471, 41:601] = True
    valid[100, [100, 101, 104]] = False  # not known; 1 mm, not above the least depth; 10 m, not below the cap
    np.testing.assert_array_equal(sample.valid, valid)
    assert sample.intrinsics[0].tolist() == pytest.approx([518.8579, 0, 325.5824], abs=1e-4)
    assert sample.intrinsics[1].tolist() == pytest.approx([0, 519.4696, 253.7362], abs=1e-4)


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_nyuv2_unpacked(tmp_path, form):
    config = shortened(tmp_path / "lists", "nyuv2", NYU_ROWS)
    files = nyuv2_files("kitchen_0004", 2, nyu_depth()) | nyuv2_files("office_0005", 9, nyu_depth() // 2)
    root = write_folder(tmp_path / "a", files) if form == "folder" else write_tar(tmp_path / "a.tar", files)
    data = open_benchmark(config, root)
    assert data.keys == ["kitchen_0004/0002", "office_0005/0009"]
    check_nyu(data[0])
    np.testing.assert_array_equal(data[0].image, colours(480, 640, seed=2))
    assert data[-1].depth[45, 41] == 0.5


@pytest.mark.parametrize("name_file", [False, True])
def test_nyuv2_as_published(tmp_path, name_file):
    config = shortened(tmp_path / "lists", "nyuv2", NYU_ROWS)
    image, depth = colours(480, 640, seed=2), (nyu_depth() / 1000).astype(np.float32)
    mat = write_labeled_mat(tmp_path / "nyu_depth_v2_labeled.mat", {2: (image, depth), 9: (image, depth * 2)})
    data = open_benchmark(config, mat if name_file else tmp_path)
    assert data.keys == ["kitchen_0004/0002", "office_0005/0009"]
    np.testing.assert_array_equal(data[0].image, image)
    np.testing.assert_array_equal(data[0].depth, depth)
    assert data[1].depth[45, 41] == 2.0
    assert data[0].valid[45, 41]
    assert not data[0].valid[44, 41]
    assert data[0].valid.sum() == 426 * 560 - 3
    assert data[0].intrinsics[0, 0] == np.float32(518.8579)


def test_nyuv2_list_is_the_official_test_split():
    config = load_benchmark("nyuv2")
    numbers = [
        int(number)
        for line in (config.folder / config.file_list).read_text().splitlines()[3:]
        for number in line.split()[1:]
    ]
    assert len(numbers) == len(set(numbers)) == 654
    # Ends of `testNdxs` in the authors' splits.mat.
    assert numbers[:8] == [1, 2, 9, 14, 15, 16, 17, 18]
    assert numbers[-3:] == [1447, 1448, 1449]


# KITTI

KITTI_ROWS = ["2011_09_26 0002 6", "2011_10_03 0047 5"]


def kitti_depth(height: int = 375, width: int = 1242) -> np.ndarray:
    """Unknown, as most of KITTI's depth is, but for 16 m everywhere between rows 100 and 374."""
    points = {(153, 44): 256, (370, 1196): 80 * 256 - 1, (200, 500): 80 * 256, (201, 500): 1}
    depth = counts(height, width, 16 * 256, points | {(152, 44): 256, (153, 43): 256, (371, 1196): 256})
    depth[:100] = 0
    return depth


def test_kitti_with_garg_crop(tmp_path):
    config = shortened(tmp_path / "lists", "kitti", KITTI_ROWS)
    # Depth of one drive is in train/, of the other in val/; images differ in size.
    first = kitti_files("2011_09_26", "0002", 6, kitti_depth())
    second = kitti_files("2011_10_03", "0047", 5, kitti_depth(376, 1241), layout="val")
    data = open_benchmark(config, write_folder(tmp_path / "kitti", first | second))
    assert data.keys == ["2011_09_26_drive_0002_sync/0000000006", "2011_10_03_drive_0047_sync/0000000005"]
    sample = data[0]
    assert sample.image.shape == (375, 1242, 3)
    assert sample.depth[153, 44] == 1.0
    assert sample.depth[370, 1196] == np.float32((80 * 256 - 1) / 256)
    assert sample.depth[201, 500] == np.float32(1 / 256)
    # 0.40810811·375 = 153.04, 0.99189189·375 = 371.96, 0.03594771·1242 = 44.65, 0.96405229·1242 = 1197.35.
    valid = np.zeros((375, 1242), bool)
    valid[153:371, 44:1197] = True
    valid[200, 500] = False  # 80 m is not below the cap
    np.testing.assert_array_equal(sample.valid, valid)
    assert sample.intrinsics is None
    # 0.40810811·376 = 153.4, 0.99189189·376 = 372.95, 0.03594771·1241 = 44.6, 0.96405229·1241 = 1196.4.
    rows, columns = np.nonzero(data[1].valid)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (153, 371, 44, 1195)


def test_kitti_as_marigold_scores_it(tmp_path):
    config = shortened(tmp_path / "lists", "kitti-marigold", KITTI_ROWS[:1])
    files = kitti_files("2011_09_26", "0002", 6, kitti_depth(), layout="marigold")
    sample = open_benchmark(config, write_tar(tmp_path / "kitti.tar", files))[0]
    # 352 rows from the bottom, 1216 columns from the middle: rows 23 to 374, columns 13 to 1228.
    assert sample.image.shape == (352, 1216, 3)
    np.testing.assert_array_equal(sample.image, colours(375, 1242, seed=6)[23:, 13:1229])
    assert sample.depth.shape == (352, 1216)
    assert sample.depth[153 - 23, 44 - 13] == 1.0
    # 0.3324324·352 = 117.02, 0.91351351·352 = 321.56, 0.0359477·1216 = 43.7, 0.96405229·1216 = 1172.3.
    rows, columns = np.nonzero(sample.valid)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (117, 320, 43, 1171)


def test_kitti_list_is_eigens_with_annotated_depth():
    config = load_benchmark("kitti")
    lines = [line.split() for line in (config.folder / config.file_list).read_text().splitlines()[3:]]
    assert len(lines) == 28
    assert sum(len(line) - 2 for line in lines) == config.images == 652
    assert all(date.startswith(("2011_09_", "2011_10_03")) for date, *_ in lines)


# DIODE


def diode_depth() -> tuple[np.ndarray, np.ndarray]:
    depth = np.full((768, 1024), 5.0, np.float32)
    mask = np.ones((768, 1024))
    depth[0, :4] = 0.6, 0.7, 349.5, 350
    depth[1, :3] = 0, np.nan, 12
    mask[1, 2] = 0
    return depth, mask


@pytest.mark.parametrize("prefix", ["", "val/"])
def test_diode(tmp_path, prefix):
    depth, mask = diode_depth()
    files = diode_files("indoors", 19, 183, "000_010", depth, mask)
    files |= diode_files("indoors", 19, 183, "000_000", depth * 2, mask)
    files |= diode_files("outdoor", 22, 193, "000_000", depth, mask)
    root = write_folder(tmp_path, {prefix + name: content for name, content in files.items()})
    (root / prefix / "indoors" / "scene_00019" / "scan_00183" / "._00019_00183_indoors_000_010_depth.npy").touch()
    config = dataclasses.replace(load_benchmark("diode-indoor"), images=2)
    data = open_benchmark(config, root)
    assert data.keys == ["00019_00183_indoors_000_000", "00019_00183_indoors_000_010"]
    sample = data[1]
    np.testing.assert_array_equal(sample.image, colours(768, 1024))
    valid = np.ones((768, 1024), bool)
    valid[0, [0, 3]] = False  # the ends of the range
    valid[1, :3] = False  # zero, NaN, masked
    np.testing.assert_array_equal(sample.valid, valid)
    assert sample.depth[0, :3].tolist() == np.array([0.6, 0.7, 349.5], np.float32).tolist()
    assert sample.depth[1, :3].tolist() == [0, 0, 0]
    assert sample.intrinsics.tolist() == [[np.float32(886.81), 0, 512], [0, np.float32(927.06), 384], [0, 0, 1]]
    assert data[0].depth[5, 5] == 10.0
    for name, number in (("diode-outdoor", 1), ("diode", 3)):
        assert len(open_benchmark(dataclasses.replace(load_benchmark(name), images=number), root)) == number


# ETH3D


@pytest.mark.parametrize("layout", ["published", "marigold"])
def test_eth3d(tmp_path, layout):
    depth = np.linspace(1, 60, 24 * 36, dtype=np.float32).reshape(24, 36)
    depth[0, 0], depth[0, 1] = np.inf, 0
    files = eth3d_files("office", 219, depth, layout) | eth3d_files("relief_2", 427, depth[::-1], layout)
    data = open_benchmark(dataclasses.replace(load_benchmark("eth3d"), images=2), write_folder(tmp_path, files))
    assert data.keys == ["office/DSC_0219", "relief_2/DSC_0427"]
    sample = data[0]
    assert sample.image.shape == (24, 36, 3)
    np.testing.assert_array_equal(sample.depth[1:], depth[1:])
    assert sample.depth[0, :2].tolist() == [0, 0]
    assert sample.valid.sum() == 24 * 36 - 2
    assert data[1].depth[0, 5] == depth[-1, 5]


# ScanNet


def test_scannet_from_marigolds_archive(tmp_path):
    config = shortened(tmp_path / "lists", "scannet", ["scene0011_00 0 1200"])
    depth = counts(48, 64, 1500, {(0, 0): 0, (0, 1): 10000, (0, 2): 9999})
    files = scannet_files("scene0011_00", 0, depth) | scannet_files("scene0011_00", 1200, depth * 2)
    data = open_benchmark(config, write_tar(tmp_path / "scannet.tar", files))
    assert data.keys == ["scene0011_00/000000", "scene0011_00/001200"]
    assert data[0].depth[5, 5] == 1.5
    assert data[0].valid[0, :3].tolist() == [False, False, True]
    assert data[0].valid.sum() == 48 * 64 - 2
    assert data[1].depth[5, 5] == 3.0


def test_scannet_as_exported_has_colour_resized_to_depth(tmp_path):
    config = shortened(tmp_path / "lists", "scannet", ["scene0011_00 20"])
    depth = counts(48, 64, 1500, {})
    files = scannet_files("scene0011_00", 20, depth, "exported", size=(96, 128))
    sample = open_benchmark(config, write_folder(tmp_path / "data", files))[0]
    assert sample.image.shape == (48, 64, 3)
    # Twice the size: a pixel is the mean of those it covers, rows 2v and 2v + 1; JPEG is a little off.
    expected = 2 * np.arange(4, 44) + 0.5
    np.testing.assert_allclose(sample.image[4:44, 30, 0], expected, atol=2.5)
    assert sample.depth[5, 5] == 1.5


# Pairs and scenes


def test_pairs(tmp_path):
    metres = np.full((48, 64), 1.5, np.float32)
    metres[0, 0] = 0
    folder = write_pairs(
        tmp_path / "own", [FRAMES[0] | {"depth.npy": encode(metres, "NPY")}, FRAMES[1]], metadata=True
    )
    data = open_benchmark(load_benchmark("pairs"), folder)
    assert data.keys == ["frame0000", "frame0001"]
    assert (data[0].depth[1:] == 1.5).all()
    assert data[0].valid.sum() == 48 * 64 - 1
    # 64 pixels wide, 60°: f = 32 / tan 30°.
    assert data[0].intrinsics[0].tolist() == pytest.approx([55.4256, 0, 31.5], abs=1e-3)
    assert data[1].depth[-1, 0] == 1.0
    assert not data[1].valid[:4].any()
    assert data[1].valid[4:].all()


def test_crop_and_range_of_ones_own_benchmark(tmp_path):
    text = 'name = "mine"\ntitle = ""\nsource = ""\nlicense = ""\nreader = "pairs"\nalignment = "log"\n'
    file = tmp_path / "mine.toml"
    file.write_text(text + "crop = [2, 40, 3, 60]\nmin_depth = 1\nmax_depth = 4\nimages = 1\n")
    depth = counts(48, 64, 2000, {(2, 3): 1000, (2, 4): 1001, (39, 59): 3999, (39, 58): 4000})
    frame = FRAMES[0] | {"depth.png": png(depth)}
    sample = open_benchmark(load_benchmark(file), write_pairs(tmp_path / "own", [frame]))[0]
    valid = np.zeros((48, 64), bool)
    valid[2:40, 3:60] = True
    valid[2, 3] = valid[39, 58] = False
    np.testing.assert_array_equal(sample.valid, valid)


def test_scenes_are_those_that_training_holds_out(tmp_path):
    frames = [sloping_frame(number) for number in range(40)]
    write_shard(tmp_path / "train-000.tar", frames)
    config = dataclasses.replace(load_benchmark("scenes"), held_out_fraction=0.3)
    data = open_benchmark(config, tmp_path)
    scenes = [str(number // 2) for number in range(40)]
    held_out = split_by_scene(scenes, 0.3)[1]
    assert 0 < len(held_out) < 40
    assert data.keys == [f"frame{number:04d}" for number in held_out]
    assert open_benchmark(load_benchmark("scenes-all"), tmp_path / "train-000.tar").keys[:40] == [
        f"frame{number:04d}" for number in range(40)
    ]
    everything = open_benchmark(load_benchmark("scenes-all"), tmp_path)
    number = held_out[0]
    np.testing.assert_array_equal(data[0].depth, everything[number].depth)
    assert data[0].depth[-1, 0] == 1.0
    np.testing.assert_array_equal(data[0].valid, data[0].depth > 0)
    assert data[0].intrinsics[0, 0] == pytest.approx(55.4256, abs=1e-3)


# All of them


def test_fingerprint_tells_other_files_and_survives_moving(tmp_path):
    config = shortened(tmp_path / "lists", "scannet", ["scene0011_00 0 20"])
    noise = np.random.default_rng(0).integers(1000, 5000, (48, 64)).astype(np.uint16)
    files = scannet_files("scene0011_00", 0, noise) | scannet_files("scene0011_00", 20, noise)
    fingerprint = open_benchmark(config, write_folder(tmp_path / "a", files)).fingerprint()
    assert len(fingerprint) == 64
    assert open_benchmark(config, write_folder(tmp_path / "b" / "c", files)).fingerprint() == fingerprint
    assert open_benchmark(config, write_tar(tmp_path / "c.tar", files)).fingerprint() == fingerprint
    files |= scannet_files("scene0011_00", 20, noise // 2)
    assert open_benchmark(config, write_folder(tmp_path / "d", files)).fingerprint() != fingerprint


def test_fingerprint_of_pairs_follows_the_metadata(tmp_path):
    config = load_benchmark("pairs")
    folder = write_pairs(tmp_path / "own", FRAMES, metadata=True)
    before = open_benchmark(config, folder).fingerprint()
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("60.0", "70.0"))
    assert open_benchmark(config, folder).fingerprint() != before


def test_data_is_a_sequence_that_can_be_sent_to_another_process(tmp_path):
    write_shard(tmp_path / "a.tar", FRAMES)
    config = shortened(tmp_path / "lists", "scannet", ["scene0011_00 0"])
    tar = write_tar(tmp_path / "s" / "b.tar", scannet_files("scene0011_00", 0, counts(8, 8, 900, {})))
    for data in (open_benchmark(load_benchmark("scenes-all"), tmp_path), open_benchmark(config, tar)):
        other = pickle.loads(pickle.dumps(data))
        assert other.fingerprint() == data.fingerprint()
        assert [sample.key for sample in other] == data.keys
        np.testing.assert_array_equal(other[-1].depth, data[len(data) - 1].depth)
        with pytest.raises(IndexError, match=f"Image {len(data)} of {len(data)}"):
            data[len(data)]


@given(
    values=st.lists(st.integers(0, 65535), min_size=12, max_size=12),
    metres_per_count=st.sampled_from([0.001, 1 / 256, 1 / 1000 * 3]),
    low=st.floats(0, 5),
    span=st.floats(0.1, 60),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_become_metres_and_valid_ones_are_in_range(tmp_path, values, metres_per_count, low, span):
    stored = np.array(values, np.uint16).reshape(3, 4)
    config = dataclasses.replace(
        shortened(tmp_path / "lists", "scannet", ["scene0011_00 0"]),
        metres_per_count=metres_per_count,
        min_depth=low,
        max_depth=low + span,
    )
    sample = open_benchmark(config, write_folder(tmp_path / "data", scannet_files("scene0011_00", 0, stored)))[0]
    for count, metres, valid in zip(values, sample.depth.flat, sample.valid.flat, strict=True):
        assert metres == np.float32(count * metres_per_count)
        assert valid == (count > 0 and np.float32(low) < metres < np.float32(low + span))
