"""Benchmarks' configurations: those that are bundled, and what is refused in one's own."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthfm_diffusers.evaluation.data.configs import BenchmarkConfig, benchmark_names, load_benchmark
from depthfm_diffusers.evaluation.data.file_lists import as_expression, as_glob, fill, placeholders, read_file_list

OWN = """
name = "own"
title = "Own"
source = "Here"
license = "None"
reader = "listed"
images = 3
key = "{scene}/{frame:04}"
image = "{scene}/rgb_{frame:04}.jpg"
depth = ["{scene}/depth_{frame:04}.png", "depth/{scene}/{frame:04}.png"]
depth_format = "png16"
metres_per_count = 0.001
unknown = "zero"
alignment = "log"
"""

LIST = "# From nowhere.\nscene frame\n\nhall 1 2\nroom 3\n"


def own(tmp_path: Path, text: str = OWN) -> BenchmarkConfig:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return load_benchmark(path)


def test_bundled_benchmarks():
    expected = {
        "diode": ("listed", 771, None, 350.0, "none"),
        "diode-indoor": ("listed", 325, None, 350.0, "none"),
        "diode-outdoor": ("listed", 446, None, 350.0, "none"),
        "eth3d": ("listed", 454, None, None, "none"),
        "kitti": ("listed", 652, 1 / 256, 80.0, "garg"),
        "kitti-marigold": ("listed", 652, 1 / 256, 80.0, "kitti-eigen"),
        "nyuv2": ("nyuv2", 654, 0.001, 10.0, "nyu-eigen"),
        "pairs": ("pairs", None, None, None, "none"),
        "scannet": ("listed", 800, 0.001, 10.0, "none"),
        "scenes": ("shards", None, None, None, "none"),
        "scenes-all": ("shards", None, None, None, "none"),
    }
    assert benchmark_names() == tuple(sorted(expected))
    for name, (reader, images, metres_per_count, max_depth, crop) in expected.items():
        config = load_benchmark(name)
        assert config.name == name
        found = (config.reader, config.images, config.metres_per_count, config.max_depth, config.crop)
        assert found == (reader, images, metres_per_count, max_depth, crop)
        assert config.title
        assert config.source
        assert config.license
        if config.file_list:
            rows = read_file_list(config.folder / config.file_list, placeholders(config.key))
            assert len(rows) == len({fill(config.key, row) for row in rows}) == images
        # What goes into a report is the same on every machine.
        text = json.dumps(config.settings())
        assert str(config.folder) not in text
        assert json.loads(text)["alignment"] in ("depth", "log")


def test_ones_own_file(tmp_path):
    config = own(tmp_path)
    assert config == dataclasses.replace(config, folder=Path("elsewhere"))
    assert config.image == ("{scene}/rgb_{frame:04}.jpg",)
    assert config.depth[1] == "depth/{scene}/{frame:04}.png"
    assert config.settings()["unknown"] == ["zero"]
    assert config.alignment_method == "least_squares"
    assert own(tmp_path, OWN + "crop = [1, 2, 3, 4]").crop == (1, 2, 3, 4)


def test_unknown_names_and_files(tmp_path):
    with pytest.raises(ValueError, match=r"no benchmark 'nyu'; there are diode, .*, nyuv2, .* `\.toml` file can"):
        load_benchmark("nyu")
    with pytest.raises(FileNotFoundError, match=r"no benchmark file .*none\.toml"):
        load_benchmark(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=r"own\.toml is not a TOML file"):
        own(tmp_path, "name = ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("colour = 1", r"own\.toml: unknown field\(s\) colour; there are name, title, .*held_out_fraction"),
        ('folder = "/"', r"unknown field\(s\) folder"),
        ("images = true", r"`images` must be a whole number, got True"),
        ("images = 0", r"`images` must be at least 1, got 0"),
        ("images = 2.5", r"`images` must be a whole number, got 2\.5"),
        ('max_depth = "80"', r"`max_depth` must be a number, got '80'"),
        ("max_depth = nan", r"`max_depth` must be a number, got nan"),
        ("max_depth = 0", r"`max_depth` must be above min_depth, 0\.0, got 0"),
        ("min_depth = -1", r"`min_depth` must not be negative, got -1"),
        ("title = 1", r"`title` must be text, got 1"),
        ('name = "a b"', r"`name` must be letters.*got 'a b'"),
        ('reader = "zip"', r"`reader` must be one of listed, nyuv2, pairs, shards, got 'zip'"),
        ('reader = "nyuv2"', r"`file_list` is missing: the reader 'nyuv2'"),
        ('alignment = "metric"', r"`alignment` must be one of .*log.*got 'metric'"),
        ('alignment_method = "l1"', r"`alignment_method` must be one of least_squares, got 'l1'"),
        ('crop = "eigen"', r"`crop` must be one of none, nyu-eigen, kitti-eigen, garg, got 'eigen'"),
        ("crop = [1, 2, 3]", r"`crop` must be text or an array of 4 whole numbers"),
        ("crop = [2, 2, 3, 4]", r"`crop` must be top < bottom"),
        ("ppd_crop = [2, 2, 3, 4]", r"`ppd_crop` must be top < bottom"),
        ('ppd_crop = "eigen"', r"`ppd_crop` must be one of none, nyu-eigen, kitti-eigen, garg, got 'eigen'"),
        ("ppd_max_gradient = -1", r"`ppd_max_gradient` must not be negative, got -1"),
        ("max_depth = 1\nppd_min_depth = 2", r"`max_depth` must be above min_depth, 2, got 1"),
        ('image_crop = "centre"', r"`image_crop` must be one of none, kitti-benchmark"),
        ("processing_resolution = -1", r"`processing_resolution` must not be negative"),
        ("image = [1]", r"`image` must be text or an array of texts, got \(1,\)"),
        ("image = []", r"`image` is missing: the reader 'listed' needs it"),
        (
            'image = "{scene}/{view}.jpg"',
            r"`image`: '\{scene\}/\{view\}\.jpg' and the first pattern of depth differ in",
        ),
        ('depth = ["{scene}/{frame}.png", "{frame}.png"]', r"`depth`: .* differ in scene"),
        ('image = "{scene/{frame}.jpg"', r"has braces that are neither"),
        ('depth_format = "exr"', r"`depth_format` must be one of png16, npy, float32, got 'exr'"),
        ('depth_format = "npy"', r"`metres_per_count` goes with the depth_format 'png16'"),
        ("metres_per_count = 0", r"`metres_per_count` must be positive"),
        ('unknown = ["zero", "nan"]', r"`unknown` must be of zero for png16, got 'nan'"),
        ('resize_image = "yes"', r"`resize_image` must be true or false"),
        ("image_size = [640]", r"`image_size` must be an array of 2 whole numbers"),
        ("image_size = [0, 1]", r"`image_size` must be positive"),
        ("intrinsics = [1, 1, 0, 0]", r"`intrinsics` needs image_size"),
        ("image_size = [4, 4]\nintrinsics = [0, 1, 0, 0]", r"`intrinsics` must have positive focal lengths"),
        ("image_size = [4, 4]\nresize_image = true\nintrinsics = [1, 1, 0, 0]", r"does not go with resize_image"),
        ("held_out_fraction = 0.1", r"`held_out_fraction` is for the reader 'shards'"),
    ],
)
def test_fields_that_cannot_be_are_named(tmp_path, line, message):
    field = line.split(" ")[0]
    kept = "\n".join(row for row in OWN.splitlines() if not row.startswith(f"{field} ="))
    with pytest.raises((ValueError, TypeError), match=message):
        own(tmp_path, kept + "\n" + line)


@pytest.mark.parametrize("field", ["name", "alignment", "key", "depth", "depth_format", "metres_per_count"])
def test_missing_fields_are_named(tmp_path, field):
    kept = "\n".join(row for row in OWN.splitlines() if not row.startswith(f"{field} ="))
    with pytest.raises(ValueError, match=rf"own\.toml: .*{field}"):
        own(tmp_path, kept)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("metres_per_count = 0.001", r"`metres_per_count` is not for the reader 'shards'"),
        ("resize_image = true", r"`resize_image` is not for the reader 'shards'"),
        ("held_out_fraction = 1", r"`held_out_fraction` must be in \(0, 1\), got 1"),
    ],
)
def test_fields_that_do_not_go_with_frames_are_named(tmp_path, line, message):
    text = 'name = "own"\ntitle = ""\nsource = ""\nlicense = ""\nreader = "shards"\nalignment = "log"\n'
    with pytest.raises(ValueError, match=message):
        own(tmp_path, text + line)


# Lists and patterns


def test_file_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(LIST)
    assert read_file_list(path, ["scene"]) == [
        {"scene": "hall", "frame": "1"},
        {"scene": "hall", "frame": "2"},
        {"scene": "room", "frame": "3"},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LIST + "cellar\n", r"has the line 'cellar', not 'scene frame'"),
        (LIST + "hall 2\n", r"has 'hall 2' twice"),
        ("# Nothing.\nscene frame\n", r"list\.txt has no images"),
        (LIST.replace("scene", "place"), r"has the columns place, frame, none called scene"),
    ],
)
def test_lists_that_cannot_be_used_are_named(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_file_list(path, ["scene"])


def test_missing_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file list .*list\.txt"):
        read_file_list(tmp_path / "list.txt", [])


def test_patterns():
    pattern = "{scene}/rgb_{frame:04}.[1].png"
    assert placeholders(pattern) == {"scene", "frame"}
    assert fill(pattern, {"scene": "a", "frame": "7"}) == "a/rgb_0007.[1].png"
    assert fill("{frame}", {"frame": "7"}) == "7"
    assert as_glob(pattern) == "*/rgb_*.[[]1].png"
    assert as_expression(pattern).fullmatch("a/rgb_0007.[1].png").groupdict() == {"scene": "a", "frame": "0007"}
    assert as_expression(pattern).fullmatch("a/rgb_007.[1].png") is None
    assert as_expression("{a}/{a}.png").fullmatch("x/x.png")
    assert as_expression("{a}/{a}.png").fullmatch("x/y.png") is None
    assert as_expression("{a}.png").fullmatch("x/y.png") is None


@given(
    parts=st.lists(st.text("ab./*?[]()\\-", max_size=4), min_size=3, max_size=3),
    scene=st.text("abc_.-", min_size=1, max_size=6),
    frame=st.integers(0, 9999),
)
def test_what_was_filled_in_is_found_again(parts, scene, frame):
    pattern = f"{parts[0]}{{scene}}/{parts[1]}{{frame:04}}{parts[2]}"
    name = fill(pattern, {"scene": scene, "frame": str(frame)})
    match = as_expression(pattern).fullmatch(name)
    assert match
    assert fill(pattern, match.groupdict()) == name
