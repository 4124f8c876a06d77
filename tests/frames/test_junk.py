"""What systems leave beside data is nowhere taken for data."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.benchmark_folders import write_folder, write_tar
from helpers.captioned import picture, write_caption_parquet, write_image_folder
from helpers.shards import encode, sloping_frame, write_pairs, write_shard

from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark
from depthfm_diffusers.evaluation.data.storage import Storage
from depthfm_diffusers.frames import CaptionSourceConfig, SourceConfig, open_captioned_source, open_source
from depthfm_diffusers.inference.input_files import collect_inputs

FOLDERS = ("", ".ipynb_checkpoints/", "__MACOSX/", ".Trash-0/", "@eaDir/")


def add_junk(folder: Path, *suffixes: str) -> None:
    """Puts system files, and files of the given kinds that nobody made by hand, beside and below the data."""
    names = [f"{start}._a{suffix}" for start in FOLDERS for suffix in suffixes]
    names += [f"{start}a{suffix}" for start in FOLDERS[1:] for suffix in suffixes]
    write_folder(folder, dict.fromkeys([*names, ".DS_Store", "Thumbs.db", "desktop.ini"], b"junk"))


def test_folder_of_photos(tmp_path):
    folder = write_image_folder(tmp_path / "photos", count=3, captioned=False)
    add_junk(folder, ".png", ".tar", ".parquet", ".jpg")
    write_folder(folder / "__MACOSX", {"metadata.csv": b"file_name,text\n"})
    assert open_captioned_source(CaptionSourceConfig(str(folder))).keys == [f"photo{n}.png" for n in range(3)]
    files, failures = collect_inputs([folder, f"{folder}/**/*.png", f"{folder}/*/*.png"])
    assert [path.name for path in files] == [f"photo{n}.png" for n in range(3)]
    assert [failure.name for failure in failures] == [f"{folder}/*/*.png"]


def test_linked_folder_of_photos(tmp_path):
    write_image_folder(tmp_path / "disk" / "more", count=2, captioned=False)
    write_image_folder(tmp_path / "photos", count=1, captioned=False)
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "photos")
    keys = ["link/more/photo0.png", "link/more/photo1.png", "photo0.png"]
    assert open_captioned_source(CaptionSourceConfig(str(tmp_path / "photos"))).keys == keys
    files, _ = collect_inputs([f"{tmp_path}/photos/**/*.png"])
    assert [path.relative_to(tmp_path / "photos").as_posix() for path in files] == keys


def test_pairs(tmp_path):
    folder = write_pairs(tmp_path, [sloping_frame(n) for n in range(2)], metadata=True)
    add_junk(folder / "images", ".png", ".txt")
    add_junk(folder / "depth", ".npy")
    add_junk(folder, ".csv", ".tar")
    assert open_source(SourceConfig(str(folder))).keys == ["frame0000", "frame0001"]
    assert open_benchmark(load_benchmark("pairs"), folder).keys == ["frame0000", "frame0001"]


@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.tar"])
def test_shards(tmp_path, pattern):
    write_shard(tmp_path / "a.tar", [sloping_frame(0)])
    add_junk(tmp_path, ".tar", ".parquet")
    if pattern == "/*":  # all that it stands for is taken
        for name in ("Thumbs.db", "desktop.ini"):
            (tmp_path / name).rename(tmp_path / f".{name}")
    assert open_source(SourceConfig(f"{tmp_path}{pattern}")).keys == ["frame0000"]


def test_tables(tmp_path):
    write_caption_parquet(tmp_path / "a.parquet", count=2)
    add_junk(tmp_path, ".parquet", ".tar", ".jsonl")
    assert open_captioned_source(CaptionSourceConfig(str(tmp_path))).keys == ["a:0", "a:1"]


def test_inside_a_shard(tmp_path):
    image = encode(picture(0), "PNG")
    names = ["./a.png", "./__MACOSX/._a.png", "__MACOSX/b.png", ".ipynb_checkpoints/a.png", "c/._a.png", "c/Thumbs.db"]
    write_tar(tmp_path / "a.tar", {**dict.fromkeys(names, image), "./d/a.png": image}, prefix="")
    assert open_captioned_source(CaptionSourceConfig(str(tmp_path / "a.tar"))).keys == ["./a", "./d/a"]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_files_of_a_benchmark(tmp_path, kind):
    names = ["a/1.png", "a/._1.png", "__MACOSX/1.png", "@eaDir/1.png", ".x/1.png"]
    files = dict.fromkeys(names, b"")
    if kind == "tar":
        write_tar(tmp_path / "a.tar", files, prefix="./")
    else:
        write_folder(tmp_path / "a.tar", files)
    storage = Storage(tmp_path / "a.tar")
    assert storage.find("{scene}/{name}.png") == [{"scene": "a", "name": "1"}]
    assert storage.find(".x/{name}.png") == [{"name": "1"}], "the benchmark names it"


# Extensions in shards


@pytest.mark.parametrize("change", [str.upper, str.title, str.lower])
def test_the_case_of_extensions_does_not_matter(tmp_path, change):
    """WebDataset's own rule (`lcase` of `tariterators.group_by_keys`)."""
    files = {}
    for number in range(2):
        frame = sloping_frame(number)
        files |= {f"Key{number}.{change(suffix)}": content for suffix, content in frame.items()}
        files |= {f"Key{number}.{change('txt')}": b"a caption"}
    write_tar(tmp_path / "a.TAR", files, prefix="")
    frames = open_source(SourceConfig(str(tmp_path / "a.TAR")))
    assert frames.keys == ["Key0", "Key1"]
    assert frames.has_intrinsics
    assert frames[1].depth.shape == (48, 64)
    for settings in ({}, {"image_column": "PNG"}, {"caption_column": "TXT"}, {"caption_column": "txt"}):
        assert open_captioned_source(CaptionSourceConfig(str(tmp_path), **settings))[1].caption == "a caption"
    assert open_source(SourceConfig(str(tmp_path), depth_column="Depth.PNG"))[0].depth.shape == (48, 64)


def test_extensions_that_differ_by_case_are_one(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": b"", "a.PNG": b""}, prefix="")
    with pytest.raises(ValueError, match=r"a\.tar holds 'a\.PNG' twice"):
        open_captioned_source(CaptionSourceConfig(str(tmp_path / "a.tar")))
