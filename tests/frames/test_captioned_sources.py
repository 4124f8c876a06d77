"""Sources of images and captions: every format gives the same, and what is wrong is named."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from helpers.captioned import CAPTIONS, picture, write_caption_parquet, write_caption_shard, write_image_folder
from helpers.shards import encode, write_shard
from PIL import Image

from depthfm_diffusers.frames import CaptionSourceConfig, FrameError
from depthfm_diffusers.training.data.sources import open_captioned_images

FORMATS = {
    "txt": lambda folder: write_caption_shard(folder / "a.tar"),
    "json": lambda folder: write_caption_shard(folder / "b.tar", captions="caption"),
    "folder": lambda folder: write_image_folder(folder / "photos"),
    "parquet": lambda folder: write_caption_parquet(folder / "c.parquet"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_images_and_captions(kind, tmp_path):
    images = open_captioned_images([str(FORMATS[kind](tmp_path))])
    assert len(images) == 8
    for i in range(8):
        assert np.array_equal(images[i].image, picture(i))
        assert images[i].caption == CAPTIONS[i]
    assert np.array_equal(pickle.loads(pickle.dumps(images))[3].image, picture(3))


@pytest.mark.parametrize("kind", ["folder", "shard"])
def test_images_without_captions_have_the_empty_one(kind, tmp_path):
    if kind == "folder":
        path = write_image_folder(tmp_path / "photos", captioned=False)
    else:
        path = write_caption_shard(tmp_path / "a.tar", captions="")
    images = open_captioned_images([str(path)])
    assert [images[i].caption for i in range(len(images))] == [""] * 8
    assert len(set(images.scenes)) == 8
    assert np.array_equal(images[5].image, picture(5))


def test_frames_with_depth_serve_as_images(shard):
    """The shards that the first trainer reads are images too, whose scenes are kept together."""
    images = open_captioned_images([str(shard)])
    assert images[0].caption == ""
    assert images.scenes[0] == images.scenes[1] != images.scenes[2]


def test_caption_column_chooses(tmp_path):
    path = write_caption_shard(tmp_path / "a.tar", captions="title")
    assert open_captioned_images([str(path)])[1].caption == ""
    assert open_captioned_images([{"path": str(path), "caption_column": "title"}])[1].caption == "a a"


def test_orientation_is_applied(tmp_path):
    """What a phone stores lying on its side is seen upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "photos" / "a.png", exif=exif)
    image = open_captioned_images([str(tmp_path / "photos")])[0].image
    assert np.array_equal(image, np.rot90(picture(0), -1))


def test_fingerprint_follows_the_content(tmp_path):
    first, second = (open_captioned_images([str(write_image_folder(tmp_path / name))]) for name in "ab")
    assert first.fingerprint() == second.fingerprint()
    Image.fromarray(picture(9)).save(tmp_path / "b" / "photo0.png")
    assert first.fingerprint() != second.fingerprint()
    metadata = tmp_path / "b" / "metadata.jsonl"
    Image.fromarray(picture(0)).save(tmp_path / "b" / "photo0.png")
    metadata.write_text(metadata.read_text().replace('"a a"', '"b"'))
    assert first.fingerprint() != open_captioned_images([str(tmp_path / "b")]).fingerprint()


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"caption_column": "title"}, ValueError, r"no sample has a caption \.title, nor 'title' in its json"),
        ({"image_column": "jpg"}, ValueError, r"no sample has an image \(jpg\)"),
        ({"depth_column": "depth"}, ValueError, "unknown setting"),
        ({"format": "pairs"}, ValueError, "format must be one of"),
        ({"caption_column": 3}, TypeError, "caption_column must be text, got 3"),
        ({"weight": 0}, ValueError, "weight must be above 0"),
    ],
)
def test_bad_settings_are_named(setting, error, message, tmp_path):
    path = write_caption_shard(tmp_path / "a.tar", captions="caption")
    with pytest.raises(error, match=message):
        open_captioned_images([{"path": str(path), **setting}])


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no"):
        open_captioned_images([str(tmp_path / "empty")])


def test_captions_of_a_folder_without_metadata_are_refused(tmp_path):
    folder = write_image_folder(tmp_path / "photos", captioned=False)
    with pytest.raises(ValueError, match=r"the folder has none of metadata\.csv.*, which caption_column needs"):
        open_captioned_images([{"path": str(folder), "caption_column": "text"}])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"png": b"no picture", "txt": b"a"}, "png is not a readable image"),
        ({"png": encode(picture(0), "PNG"), "txt": b"\xff\xfe\xfa"}, "its caption is not UTF-8"),
        ({"png": encode(picture(0), "PNG"), "json": b'{"text": 3}'}, "its caption is int, not text: 3"),
        ({"txt": b"a"}, "has no image"),
    ],
)
def test_a_broken_sample_is_named(sample, message, tmp_path):
    good = {"png": encode(picture(1), "PNG"), "txt": b"a"}
    images = open_captioned_images([str(write_shard(tmp_path / "a.tar", [good, sample]))])
    assert images[0].caption == "a"
    with pytest.raises(FrameError, match=rf"'frame0001' of .*a\.tar: {message}"):
        images[1]


def test_a_caption_may_be_missing_in_one_row(tmp_path):
    folder = write_image_folder(tmp_path / "photos", count=2)
    rows = [{"file_name": "photo0.png", "text": None}, {"file_name": "photo1.png", "text": "b"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images = open_captioned_images([str(folder)])
    assert [images[i].caption for i in range(2)] == ["", "b"]


def test_a_path_alone_is_a_source():
    assert CaptionSourceConfig.parse("a") == CaptionSourceConfig("a", caption_column=None)
