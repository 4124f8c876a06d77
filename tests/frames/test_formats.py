"""The format of what is at a path: one rule for frames with depth and for captioned images."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.captioned import write_caption_parquet, write_caption_shard
from helpers.captioned import write_image_folder as write_captioned_folder
from helpers.shards import sloping_frame, write_image_folder, write_pairs, write_parquet, write_shard

from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark
from depthfm_diffusers.frames import CaptionSourceConfig, SourceConfig, open_captioned_source, open_source

FRAMES = [sloping_frame(n) for n in range(2)]
WRITERS = {
    "frames": {
        "parquet": lambda path: write_parquet(path, FRAMES),
        "tar": lambda path: write_shard(path, FRAMES),
        "folder": lambda path: write_image_folder(path, FRAMES),
    },
    "captions": {
        "parquet": lambda path: write_caption_parquet(path, count=2),
        "tar": lambda path: write_caption_shard(path, count=2),
        "folder": lambda path: write_captioned_folder(path, count=2),
    },
}


def open_path(what: str, path: Path | str, **config):
    if what == "frames":
        return open_source(SourceConfig(str(path), **config))
    return open_captioned_source(CaptionSourceConfig(str(path), **config))


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("name", ["data/train-00000.parquet", "data/train-00000.tar", "hall.folder"])
def test_data_may_be_in_subfolders(tmp_path, what, name):
    """`data/*.parquet` is the usual layout at the Hub."""
    path = tmp_path / "set" / name
    WRITERS[what][path.suffix[1:]](path)
    source = open_path(what, tmp_path / "set")
    assert len(source) == 2
    assert source.decode(source.reader.encoded(1)).image.shape == (48, 64, 3)
    if what == "captions":
        assert source[1].caption == "a a"


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_a_test_split_in_subfolders_does_not_slip_in(tmp_path, what, suffix):
    for split in ("train", "test"):
        WRITERS[what][suffix](tmp_path / "data" / f"{split}-0.{suffix}")
    with pytest.raises(ValueError, match=r"several splits, \['test', 'train'\].*test-0.*train-\*"):
        open_path(what, tmp_path)
    assert len(open_path(what, f"{tmp_path}/data/train-*")) == 2


@pytest.mark.parametrize("what", WRITERS)
def test_shards_in_the_folder_itself_come_first(tmp_path, what):
    WRITERS[what]["tar"](tmp_path / "a.tar")
    WRITERS[what]["tar"](tmp_path / "old" / "b.tar")
    assert open_path(what, tmp_path).files == [tmp_path / "a.tar"]


@pytest.mark.parametrize("what", WRITERS)
def test_a_folder_of_two_formats_is_refused(tmp_path, what):
    WRITERS[what]["parquet"](tmp_path / "both" / "a.parquet")
    WRITERS[what]["folder"](tmp_path / "both" / "hall")
    with pytest.raises(ValueError, match=r"could be any of \['imagefolder', 'parquet'\].*set format"):
        open_path(what, tmp_path / "both")
    assert len(open_path(what, tmp_path / "both", format="imagefolder")) == 2


def test_captioned_shards_may_have_a_table_beside_them(tmp_path):
    """As img2dataset writes them."""
    write_caption_shard(tmp_path / "00000.tar")
    write_caption_parquet(tmp_path / "00000.parquet")
    assert open_path("captions", tmp_path).files == [tmp_path / "00000.tar"]


def test_benchmarks_find_shards_in_subfolders(tmp_path):
    write_shard(tmp_path / "data" / "a.tar", FRAMES)
    assert open_benchmark(load_benchmark("scenes-all"), tmp_path).keys == ["frame0000", "frame0001"]


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_tables_need_datasets_and_say_so(tmp_path, what, kind, monkeypatch):
    path = WRITERS[what][kind](tmp_path / f"a.{kind}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = "Reading Parquet files and image folders needs datasets: pip install 'depthfm_diffusers[train]'"
    with pytest.raises(ImportError, match=re.escape(message)):
        open_path(what, path)


def test_shards_pairs_and_images_need_neither_datasets_nor_torch(tmp_path):
    """Beyond what the package itself imports."""
    shard = write_shard(tmp_path / "a.tar", FRAMES)
    pairs = write_pairs(tmp_path / "pairs", FRAMES)
    photos = write_captioned_folder(tmp_path / "photos", captioned=False)
    code = f"""
import sys
import depthfm_diffusers
before = set(sys.modules)
from depthfm_diffusers.frames import CaptionSourceConfig, SourceConfig, open_captioned_source, open_source
for path in ({str(shard)!r}, {str(pairs)!r}):
    open_source(SourceConfig(path)).fingerprint()
open_captioned_source(CaptionSourceConfig({str(photos)!r}))[0]
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(new & {{"torch", "diffusers", "datasets", "pyarrow"}}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
