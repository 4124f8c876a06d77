"""`MixedFrames`: several data sources as one."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.shards import assert_same_frames, sloping_frame, write_pairs, write_shard

from depthfm_diffusers.training.data.sources import MixedFrames

FRAMES = [sloping_frame(n, 16, 32 + 8 * n) for n in range(4)]


def test_mixture_is_a_concatenation(tmp_path):
    pairs, shard = write_pairs(tmp_path / "pairs", FRAMES, metadata=True), write_shard(tmp_path / "a.tar", FRAMES)
    settings = [str(pairs), {"path": str(shard), "weight": 2.5}]
    mixed = MixedFrames.open(settings)
    assert mixed.sizes == [4, 4]
    assert mixed.weights == [1.0, 2.5]
    assert mixed.source_of.tolist() == [0] * 4 + [1] * 4
    assert mixed.scenes == ["0", "0", "1", "1"] * 2
    assert mixed.groups is None
    assert mixed.has_intrinsics
    for index in range(8):
        assert_same_frames(mixed[index], mixed.sources[index // 4][index % 4])
    assert_same_frames(mixed[-1], mixed[7])
    with pytest.raises(IndexError):
        mixed[8]
    assert mixed.fingerprint() != MixedFrames.open(settings[::-1]).fingerprint()


def test_groups_of_a_mixture_do_not_meet(tmp_path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", FRAMES[:2])
    write_shard(tmp_path / "c.tar", FRAMES[:3])
    write_pairs(tmp_path / "pairs", FRAMES[:2])
    settings = [{"path": f"{tmp_path}/[ab].tar"}, str(tmp_path / "pairs"), {"path": str(tmp_path / "c.tar")}]
    mixed = MixedFrames.open(settings, streaming=True)
    assert mixed.groups.tolist() == [0, 0, 1, 1, 2, 3, 4, 4, 4]


def test_plain_files_of_one_kind_are_one_source(tmp_path):
    shards = [str(write_shard(tmp_path / f"{name}.tar", FRAMES[:2])) for name in "ab"]
    pairs = str(write_pairs(tmp_path / "pairs", FRAMES[:1]))
    mixed = MixedFrames.open([shards[1], pairs, shards[0], shards[1]])
    assert mixed.sizes == [4, 1]
    assert mixed.sources[0].files == [Path(shards[1]), Path(shards[0])]
    assert MixedFrames.open([{"path": shards[0]}, {"path": shards[1]}]).sizes == [2, 2]


def test_the_same_files_in_two_sources_are_refused(tmp_path):
    path = write_shard(tmp_path / "a.tar", FRAMES)
    with pytest.raises(ValueError, match=r"a\.tar is in two data sources"):
        MixedFrames.open([str(tmp_path), str(path)])
    with pytest.raises(ValueError, match="No data source"):
        MixedFrames.open([])
