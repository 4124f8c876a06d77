"""Results of single images on disk: nothing is lost, nothing torn is read, nothing foreign is gone on with."""

from __future__ import annotations

import json

import pytest

from depthfm_diffusers.evaluation.runs.result_files import (ResultWriter, begin_run, check_run, partial_folder, read_results, remove_results,)

IDENTITY = {"settings": {"seed": 0, "space": "log", "size": [1, 2]}, "versions": {"torch": "1"}}


@pytest.fixture
def folder(tmp_path):
    folder = partial_folder(tmp_path / "new" / "report.json")
    begin_run(folder, IDENTITY, "today")
    return folder


def test_folder_is_beside_the_report(tmp_path):
    assert partial_folder(tmp_path / "a.b.json") == tmp_path / "a.b.partial"


def test_what_is_written_is_read(folder):
    with ResultWriter(folder, 0) as first, ResultWriter(folder, 1) as second:
        first.add({"key": "a", "abs_rel": 0.1 + 0.2})
        second.add({"key": "b", "name": "Straße"})
        # On disk at once, not when the file is closed.
        assert read_results(folder) == {
            "a": {"key": "a", "abs_rel": 0.1 + 0.2},
            "b": {"key": "b", "name": "Straße"},
        }
    with ResultWriter(folder, 1) as again:
        again.add({"key": "c"})
    assert list(read_results(folder)) == ["a", "b", "c"]
    remove_results(folder)
    assert not folder.exists()


def test_every_cut_of_the_last_line_loses_that_line_only(folder):
    with ResultWriter(folder, 0) as writer:
        writer.add({"key": "a"})
        writer.add({"key": "b", "x": [1, 2]})
    path = folder / "images-0.jsonl"
    content = path.read_bytes()
    whole = content.index(b"\n") + 1
    for cut in range(whole, len(content)):
        path.write_bytes(content[:cut])
        assert list(read_results(folder)) == ["a"]
        with ResultWriter(folder, 0) as writer:
            writer.add({"key": "c"})
        assert list(read_results(folder)) == ["a", "c"]


def test_a_damaged_line_in_the_middle_is_named(folder):
    (folder / "images-3.jsonl").write_text('{"key": "a"}\n{"key": \n{"key": "b"}\n')
    with pytest.raises(ValueError, match=r"images-3\.jsonl, line 2 is damaged"):
        read_results(folder)


def test_nan_is_refused(folder):
    with ResultWriter(folder, 0) as writer, pytest.raises(ValueError, match="JSON compliant"):
        writer.add({"key": "a", "abs_rel": float("nan")})
    assert read_results(folder) == {}


def test_the_same_evaluation_goes_on(folder):
    begin_run(folder, IDENTITY, "tomorrow")
    assert check_run(folder, IDENTITY) == "today"
    assert check_run(folder, {**IDENTITY, "settings": {**IDENTITY["settings"], "size": (1, 2)}}) == "today"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1, "space": "log", "size": [1, 2]}, r"settings\.seed \(0 then, 1 now\)"),
        ({"seed": 0, "space": "log", "size": [1]}, r"settings\.size \(\[1, 2\] then, \[1\] now\)"),
        ({"seed": 0, "size": [1, 2]}, r"settings\.space \('log' then, 'nothing' now\)"),
        ({**IDENTITY["settings"], "limit": 3}, r"settings\.limit \('nothing' then, 3 now\)"),
    ],
)
def test_another_evaluation_does_not(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        check_run(folder, {**IDENTITY, "settings": settings})


def test_many_differences_are_counted(folder):
    with pytest.raises(ValueError, match="and 3 more"):
        check_run(folder, {"settings": {str(n): n for n in range(4)}})


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps({"started": "today"})])
def test_a_damaged_run_file_is_named(folder, content):
    (folder / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged: delete the folder"):
        check_run(folder, IDENTITY)
