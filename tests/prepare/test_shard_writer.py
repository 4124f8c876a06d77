"""Shards that survive kills, full disks and second runs; the manifest; its check."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import shard_writer
import verify
from helpers import kill_points
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(kill_points.__file__)


def keys(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return [name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json")]


def test_shards_and_manifest(tmp_path: Path) -> None:
    manifest = kill_points.write(tmp_path)
    # Shard 1 (frames 3, 4, 5) is rejected as a whole: there is no such file, the numbers of the others stay.
    assert [path.name for path in sorted(tmp_path.glob("*.tar"))] == [
        "toy-00000.tar",
        "toy-00002.tar",
        "toy-00003.tar",
    ]
    assert keys(tmp_path / "toy-00002.tar") == ["frame006", "frame008"]
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["counts"] == {
        "candidates": 10,
        "frames": 6,
        "rejected": 4,
        "scenes": 4,
        "sum": 0 + 1 + 2 + 6 + 8 + 9,
    }
    assert manifest["rejected"] == {"unlucky": 4}
    assert manifest["rejected_frames"][0] == {"key": "frame003", "reason": "unlucky", "detail": "number 3"}
    assert manifest["scenes"] == {"scene0": 2, "scene1": 1, "scene3": 1, "scene4": 2}
    assert manifest["settings"]["shard_size"] == 3
    assert manifest["versions"] == {"toy": "1"}
    for shard in manifest["shards"]:
        path = tmp_path / shard["file"]
        assert (shard["size"], shard["sha256"]) == (path.stat().st_size, shard_writer.file_sha256(path))
        assert shard["frames"] == len(keys(path))
    with tarfile.open(tmp_path / "toy-00000.tar") as tar:
        assert tar.getnames()[:3] == ["frame000.png", "frame000.depth.png", "frame000.json"]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_any_step_ends_with_the_same_bytes(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], check=True, capture_output=True, text=True, timeout=300
    )
    reference = kill_points.digests(tmp_path / "reference")
    runs = [json.loads(line) for line in result.stdout.splitlines()]
    # 6 frames of 3 files, 3 shards with 5 syncs and renames each, an empty one, settings, manifest.
    assert len(runs) > 18 + 15 + 9
    assert [run["killed"] for run in runs] == [True] * (len(runs) - 1) + [False]
    shards_left = set()
    for run in runs:
        left = {name for name in run["left"] if name.endswith(".tar")}
        shards_left.add(len(left))
        assert all(run["left"][name] == reference[name] for name in left), "a partial shard under a final name"
        assert run["left"].get("manifest.json") in (None, reference["manifest.json"])
        assert run["resumed"] == 0
        assert run["ended"] == reference
    assert shards_left == {0, 1, 2, 3}


def test_number_of_workers_does_not_show(tmp_path: Path) -> None:
    kill_points.write(tmp_path / "one", num_workers=1)
    kill_points.write(tmp_path / "five", num_workers=5)
    assert kill_points.digests(tmp_path / "one") == kill_points.digests(tmp_path / "five")


def test_second_run_leaves_finished_shards_alone_and_makes_lost_ones_again(tmp_path: Path) -> None:
    kill_points.write(tmp_path)
    before = kill_points.digests(tmp_path)
    kept, lost, cut = (tmp_path / f"toy-0000{number}.tar" for number in (0, 2, 3))
    time_kept = kept.stat().st_mtime_ns
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    (tmp_path / "manifest.json").unlink()
    kill_points.write(tmp_path)
    assert kill_points.digests(tmp_path) == before
    assert kept.stat().st_mtime_ns == time_kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"shard_size": 4}, "shard_size was 3, is 4"),
        ({"number": 9}, "frames was "),
        ({"new": 1}, "new was None, is 1"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, change: dict, message: str) -> None:
    kill_points.write(tmp_path)
    before = kill_points.digests(tmp_path)
    with pytest.raises(ValueError, match=message):
        kill_points.write(tmp_path, **change)
    assert kill_points.digests(tmp_path) == before


def test_other_versions_are_refused(tmp_path: Path) -> None:
    kill_points.write(tmp_path)
    settings = tmp_path / "records" / "settings.json"
    settings.write_text(settings.read_text().replace('"toy": "1"', '"toy": "0"'))
    with pytest.raises(ValueError, match="toy was '0', is '1'"):
        kill_points.write(tmp_path)


def test_foreign_shards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"another origin, such as theirs\.tar"):
        kill_points.write(tmp_path)


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    with shard_writer._locked(tmp_path / "records" / "lock"), pytest.raises(BlockingIOError, match="another run"):
        kill_points.write(tmp_path)
    kill_points.write(tmp_path)


def test_full_disk_keeps_finished_shards(tmp_path: Path) -> None:
    kill_points.write(tmp_path / "reference")
    output = tmp_path / "full"
    # The system lets the process write no file over 12 kB: shard 0 has 3 frames (20 kB), shard 2 has 2 (10 kB).
    program = (
        "import resource, sys, pathlib; sys.path.insert(0, sys.argv[1]); import kill_points\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))\n"
        "kill_points.write(pathlib.Path(sys.argv[2]))\n"
    )

    def run(limit: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", program, SCRIPT.parent, output, str(limit)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert "OSError" in run(12_000).stderr
    assert not list(output.glob("*.tar"))
    assert not list(output.glob(".*"))
    run(1_000_000)
    (output / "manifest.json").unlink()
    (output / "toy-00003.tar").unlink()
    assert "OSError" in run(3_000).stderr
    assert sorted(path.name for path in output.glob("*.tar")) == ["toy-00000.tar", "toy-00002.tar"]
    assert not list(output.glob(".*"))
    assert run(1_000_000).returncode == 0
    assert kill_points.digests(output) == kill_points.digests(tmp_path / "reference")


@pytest.mark.parametrize("skip", [False, True])
def test_unusable_frame_stops_or_is_counted(tmp_path: Path, skip: bool) -> None:
    def encode(candidate: kill_points.Numbered) -> shard_writer.Sample:
        if candidate.number == 1:
            raise shard_writer.UnusableFrame("missing_file", Path("/data"), Path("a/b.png"), "no such file")
        return shard_writer.Sample("s", {"json": b"{}"})

    def write() -> dict:
        candidates = [kill_points.Numbered(i) for i in range(3)]
        return shard_writer.write_shards(
            tmp_path, "x", candidates, encode, settings={}, source={}, versions={}, shard_size=9, skip_errors=skip
        )

    if skip:
        manifest = write()
        assert manifest["rejected_frames"] == [
            {"key": "frame001", "reason": "missing_file", "detail": "a/b.png: no such file"}
        ]
        assert keys(tmp_path / "x-00000.tar") == ["frame000", "frame002"]
    else:
        with pytest.raises(shard_writer.UnusableFrame, match=r"^/data/a/b.png: no such file$"):
            write()
        assert not list(tmp_path.glob("*.tar"))


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    def reject(candidate: kill_points.Numbered) -> shard_writer.Sample:
        raise shard_writer.FrameRejected("dull", "")

    with pytest.raises(ValueError, match=r"All 1 frames were rejected: \{'dull': 1\}"):
        shard_writer.write_shards(
            tmp_path, "x", [kill_points.Numbered(0)], reject, settings={}, source={}, versions={}, shard_size=1
        )
    assert not (tmp_path / "manifest.json").exists()


def test_numbers_and_names_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_size must be at least 1, got 0"):
        kill_points.write(tmp_path, shard_size=0)
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        kill_points.write(tmp_path, num_workers=0)
    with pytest.raises(ValueError, match="There is no frame"):
        shard_writer.in_random_order([], 0)
    with pytest.raises(ValueError, match="1 frames are listed more than once, the first is 'frame004'"):
        shard_writer.in_random_order([kill_points.Numbered(i) for i in (4, 2, 4)], 0)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=40, unique=True), st.integers(), st.randoms())
def test_random_order_depends_on_keys_and_seed_alone(numbers: list[int], seed: int, shuffler: random.Random) -> None:
    candidates = [kill_points.Numbered(i) for i in numbers]
    ordered = shard_writer.in_random_order(candidates, seed)
    assert sorted(c.number for c in ordered) == sorted(numbers)
    shuffler.shuffle(candidates)
    assert shard_writer.in_random_order(candidates, seed) == ordered
    # A frame more does not change the order of the others.
    assert [
        c for c in shard_writer.in_random_order([*candidates, kill_points.Numbered(1000)], seed) if c.number < 1000
    ] == ordered


def test_random_order_mixes() -> None:
    candidates = [kill_points.Numbered(i) for i in range(1000)]
    orders = [[c.number for c in shard_writer.in_random_order(candidates, seed)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    for order in orders:
        # Ten "scenes" of a hundred: a window of 50 misses one with probability 0.9^50 = 0.5%.
        windows = [len({number // 100 for number in order[i : i + 50]}) for i in range(0, 1000, 50)]
        assert min(windows) >= 8


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "toy-00000.tar").unlink(), "toy-00000.tar: missing"),
        (lambda folder: os.truncate(folder / "toy-00002.tar", 100), "toy-00002.tar: 100 bytes, not 20480"),
        (lambda folder: flip_byte(folder / "toy-00003.tar", 2000), "toy-00003.tar: its checksum"),
        (lambda folder: (folder / "toy-00001.tar").write_bytes(b""), "toy-00001.tar: not in the manifest"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json does not exist"),
        (lambda folder: name_twice(folder), "'frame000' is also in toy-00000.tar"),
    ],
)
def test_verify_names_the_damage(tmp_path: Path, capsys: pytest.CaptureFixture, damage, message: str) -> None:
    kill_points.write(tmp_path)
    assert verify.main([str(tmp_path)]) == 0
    damage(tmp_path)
    assert verify.main([str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def name_twice(folder: Path) -> None:
    """Puts a second copy of a shard's frames under a shard and the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "toy-00000.tar").read_bytes()
    (folder / "toy-00009.tar").write_bytes(content)
    manifest["shards"].append({**manifest["shards"][0], "file": "toy-00009.tar"})
    (folder / "manifest.json").write_text(json.dumps(manifest))
