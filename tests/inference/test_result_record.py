"""The record of a result folder: what is read of it, what is refused, and what a kill or a full disk leaves."""

from __future__ import annotations

import errno
import itertools
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers.forked_python import run
from helpers.repository import ROOT

from depthfm_diffusers import cli
from depthfm_diffusers.inference import prediction_files
from depthfm_diffusers.inference.prediction import Prediction
from depthfm_diffusers.inference.prediction_files import PredictionFolder
from depthfm_diffusers.inference.synthesis_files import SynthesisFolder

FOLDERS = {"predict": lambda path: PredictionFolder(path, "gray"), "synthesize": SynthesisFolder}
ENTRY = {"name": "a", "run": 0, "input": "/in/a.png", "input_sha256": "0", "files": ["a_depth.npy"], "images": []}
RECORD = {"runs": [{}], "images": [ENTRY]}
LINES = "metadata.partial.jsonl"


def predict(folder: Path, *sources: Path, value: float = 0.0) -> None:
    """Writes predictions of constant depth, as `depthfm predict` does."""
    results = PredictionFolder(folder, "gray")
    try:
        results.begin_run({"value": value}, sources)
        for source in sources:
            depth = np.full((2, 3), value / 4, dtype=np.float32)
            results.add_prediction(source, Prediction(depth, depth))
    finally:
        results.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def listed(folder: Path) -> dict[str, float]:
    """The setting that the record gives for each result, whose files must be as it says."""
    record = json.loads((folder / "metadata.json").read_text())
    found = {}
    for entry in record["images"]:
        found[entry["name"]] = record["runs"][entry["run"]]["value"]
        for file in entry["files"][:2]:
            assert np.unique(np.load(folder / file)) == [found[entry["name"]] / 4]
    files = [file for entry in record["images"] for file in entry["files"]]
    assert names(folder) == sorted([*files, "metadata.json"]), "a file that the record does not know"
    return found


@pytest.fixture
def sources(tmp_path) -> list[Path]:
    paths = [tmp_path / "in" / name for name in ("a.png", "b.png", "c.png")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(b"picture")
    return paths


# A record may come from anywhere


def changed(**changes: object) -> dict:
    return {**RECORD, "images": [{**ENTRY, **changes}]}


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize(
    "content",
    [
        changed(name="../x"),
        changed(name="/x"),
        changed(name="sub/x"),
        changed(name=".."),
        changed(name=""),
        changed(name="a\0b"),
        changed(name="\ud800"),
        changed(name=3),
        changed(files=["../x"]),
        changed(files=[None]),
        changed(files="a"),
        changed(files=None),
        changed(run=1),
        changed(run=-1),
        changed(run=True),
        changed(run="0"),
        changed(input=None),
        {"runs": None, "images": []},
        {"runs": [3], "images": []},
        {"runs": {}, "images": []},
        {"runs": [], "images": [{}]},
        {"runs": [], "images": None},
        {"runs": [], "images": [[]]},
        {"runs": []},
    ],
    ids=lambda content: json.dumps(content.get("images"))[-60:],
)
def test_damaged_record_is_refused_by_name(tmp_path, command, content):
    version = {"format": f"depthfm {command}, 1"}
    (tmp_path / "metadata.json").write_text(json.dumps({**version, **content}))
    with pytest.raises(ValueError, match=r"metadata\.json.* is damaged.*choose another output folder") as caught:
        FOLDERS[command](tmp_path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["metadata.json"]


@pytest.mark.parametrize(
    "images", [None, 3, [{}], [3], [{"file": "../x", "seed": 0, "nsfw": None}], [{"file": "x", "seed": "0"}]]
)
def test_damaged_images_of_a_result_are_refused(tmp_path, images):
    content = {"format": "depthfm synthesize, 1", **changed(images=images)}
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"metadata\.json.* is damaged"):
        SynthesisFolder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "[]", '{"format": "other"}', "\udcff"])
def test_another_file_is_not_taken_for_a_record(tmp_path, text):
    (tmp_path / "metadata.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"metadata\.json was not written by `depthfm predict`"):
        PredictionFolder(tmp_path, "gray")


def test_a_pipe_is_not_taken_for_a_record(tmp_path):
    os.mkfifo(tmp_path / "metadata.json")
    with pytest.raises(ValueError, match=r"metadata\.json was not written by `depthfm predict`"):
        PredictionFolder(tmp_path, "gray")


@pytest.mark.parametrize("name", [LINES, ".depthfm.lock"])
def test_a_link_is_not_written_through(tmp_path, sources, name):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "mine")
    with pytest.raises((ValueError, OSError), match="out"):
        predict(tmp_path / "out", sources[0])
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "line",
    [
        {"run": 3},
        {"result": {}},
        {"result": {**ENTRY, "name": "../x"}, "parts": "0" * 16},
        {"result": ENTRY, "parts": "../../x"},
        {"result": ENTRY, "parts": None},
        [],
        {},
    ],
    ids=json.dumps,
)
def test_damaged_line_is_refused_by_number(tmp_path, line):
    lines = [{"format": "depthfm predict, 1"}, {"run": {}}, line]
    (tmp_path / LINES).write_text("".join(json.dumps(one) + "\n" for one in lines))
    with pytest.raises(ValueError, match=r"metadata\.partial\.jsonl.*line 3.* is damaged"):
        PredictionFolder(tmp_path, "gray")


def test_lines_of_another_command_are_refused(tmp_path):
    (tmp_path / LINES).write_text('{"format": "depthfm synthesize, 1"}\n')
    with pytest.raises(ValueError, match=r"metadata\.partial\.jsonl was not written by `depthfm predict`"):
        PredictionFolder(tmp_path, "gray")


# Two commands, one folder


@pytest.mark.parametrize("command", FOLDERS)
def test_second_command_on_a_folder_is_refused(tmp_path, command):
    first = FOLDERS[command](tmp_path / "out")
    for other in FOLDERS.values():
        with pytest.raises(BlockingIOError, match="another command is writing") as caught:
            other(tmp_path / "out")
        assert caught.value.filename == str(tmp_path / "out")
    first.close()
    assert not (tmp_path / "out").exists()
    FOLDERS[command](tmp_path / "out").close()


@pytest.mark.parametrize("words", [["predict"], ["synthesize", "--prompt", "", "--base", "no-model"]])
def test_a_command_says_that_the_folder_is_taken(tmp_path, sources, capsys, words):
    """Before a model is looked for; the first command loses nothing."""
    first = PredictionFolder(tmp_path / "out", "gray")
    assert cli.main([*words, str(sources[0]), "--output", str(tmp_path / "out"), "--model", "no-model"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("depthfm: error: another command is writing here; wait until it has ended")
    assert message.endswith(f"{tmp_path / 'out'}\n")
    first.begin_run({"value": 1.0}, sources)
    depth = np.full((2, 3), 0.25, dtype=np.float32)
    first.add_prediction(sources[0], Prediction(depth, depth))
    first.close()
    assert listed(tmp_path / "out") == {"a": 1.0}


# The end that comes at any time


def test_results_of_a_killed_run_are_whole_or_absent_and_known(tmp_path):
    """A kill before and in the middle of each change on disk; the same command again leaves no file of no result."""
    status, text = run([str(ROOT / "tests" / "helpers" / "result_kills.py"), str(tmp_path)], tmp_path / "said")
    assert status == 0, text
    steps = [json.loads(line) for line in text.splitlines()]
    assert len(steps) > 30
    assert not steps[-1]["killed"]
    assert all(step["killed"] for step in steps[:-1])
    assert {step["resumed"] for step in steps} == {0}
    for number in range(1, len(steps) + 1):
        assert listed(tmp_path / f"step{number}") == {"a": 2.0, "b": 2.0, "c": 1.0}


@pytest.mark.parametrize("is_full_from_then_on", [False, True])
@pytest.mark.parametrize("name", ["write", "mkdir", "replace", "save_array", "save_image"])
def test_a_full_disk_loses_nothing(tmp_path, sources, monkeypatch, name, is_full_from_then_on):
    where = prediction_files if name.startswith("save") else os
    function = getattr(where, name)
    for step in range(1, 100):
        out = tmp_path / f"out{step}"
        predict(out, *sources, value=1.0)
        calls = itertools.count(1)

        def fail(*arguments, step=step, calls=calls, **options):
            number = next(calls)
            if number == step or (is_full_from_then_on and number > step):
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(where, name, fail)
            with suppress(OSError):
                predict(out, *sources[:2], value=2.0)
        if next(calls) <= step:
            break
        predict(out, sources[0], value=3.0)
        found = listed(out)
        assert found["a"] == 3.0
        assert found["b"] in (1.0, 2.0)
        assert found["c"] == 1.0
    assert step > 1
    assert listed(out) == {"a": 2.0, "b": 2.0, "c": 1.0}


def test_lines_that_were_folded_already_are_folded_again(tmp_path, sources):
    """As after a kill between the two files."""
    predict(tmp_path / "out", sources[0], value=1.0)
    results = PredictionFolder(tmp_path / "out", "gray")
    results.begin_run({"value": 2.0}, sources)
    depth = np.full((2, 3), 0.5, dtype=np.float32)
    results.add_prediction(sources[0], Prediction(depth, depth))
    lines = (tmp_path / "out" / LINES).read_bytes()
    results.close()
    (tmp_path / "out" / LINES).write_bytes(lines)
    predict(tmp_path / "out", sources[1], value=3.0)
    assert listed(tmp_path / "out") == {"a": 2.0, "b": 3.0}
    assert len(json.loads((tmp_path / "out" / "metadata.json").read_text())["runs"]) == 2


def test_a_result_is_a_line_and_the_record_is_written_once(tmp_path, sources):
    """However many results a folder has, the next one costs the same."""
    predict(tmp_path / "out", *sources)
    before = (tmp_path / "out" / "metadata.json").read_bytes()
    results = PredictionFolder(tmp_path / "out", "gray")
    results.begin_run({"value": 2.0}, sources)
    depth = np.full((2, 3), 0.5, dtype=np.float32)
    sizes = []
    for source in sources:
        results.add_prediction(source, Prediction(depth, depth))
        sizes.append((tmp_path / "out" / LINES).stat().st_size)
        assert (tmp_path / "out" / "metadata.json").read_bytes() == before
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] < 400 + len(str(tmp_path))
    results.close()
    assert listed(tmp_path / "out") == {"a": 2.0, "b": 2.0, "c": 2.0}
