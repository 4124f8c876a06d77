"""Runs over images: no result is lost, no incomplete line is read, no run of other settings is resumed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from depthfm_diffusers.evaluation.runs.resumable_run import ResultWriter, begin_run, check_run, partial_folder, read_results, run_over_images

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


def test_a_run_ends_in_a_report(tmp_path):
    seen, drawn, progress = [], [], []

    def score(index: int) -> dict:
        seen.append(index)
        return {"key": "abc"[index], "square": index**2}

    def draw(entries):
        drawn.extend(entries)
        assert partial_folder(output).is_dir()
        return np.zeros((2, 3, 3), np.uint8)

    output = tmp_path / "new" / "report.json"
    report = run_over_images(
        "abc",
        score,
        lambda entries: {"sum": sum(entry["square"] for entry in entries)},
        output,
        IDENTITY,
        order=[2, 0, 1],
        draw=draw,
        picture_path=tmp_path / "sheet.png",
        on_progress=lambda *step: progress.append(step),
    )
    assert seen == [2, 0, 1]
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert list(report) == ["sum", "per_image", "time"]
    assert report["sum"] == 5
    assert report["per_image"] == drawn == [{"key": key, "square": n**2} for n, key in enumerate("abc")]
    assert all("seconds" not in one for one in report["per_image"])
    assert set(report["time"]) == {"started", "finished", "seconds"}
    assert json.loads(output.read_text()) == report
    assert (tmp_path / "sheet.png").is_file()
    assert not partial_folder(output).exists()


def test_seconds_of_all_images_are_added(folder):
    with ResultWriter(folder, 0) as writer:
        for key, seconds in {"a": 2.0, "b": 4.5, "c": 0.5}.items():
            writer.add({"key": key, "seconds": seconds})
    output = folder.with_name("report.json")
    report = run_over_images("abc", None, lambda entries: {}, output, IDENTITY)
    assert report["time"]["seconds"] == 7.0
    assert report["time"]["started"] == "today"


def test_an_image_that_no_process_has_computed_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="1 of 2 images were not computed, the first is 'b'"):
        run_over_images("ab", lambda index: {"key": "a"}, lambda entries: {}, tmp_path / "r.json", IDENTITY)


@pytest.mark.parametrize("line", [{"key": "a"}, {"key": "a", "seconds": "1"}, {"key": "a", "seconds": None}])
def test_results_that_lack_something_are_refused(tmp_path, line):
    folder = partial_folder(tmp_path / "report.json")
    begin_run(folder, IDENTITY, "today")
    (folder / "images-0.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"report\.partial has results that lack something"):
        run_over_images(["a"], lambda i: {}, lambda entries: {}, tmp_path / "report.json", IDENTITY)


def test_deep_nesting_is_damage(folder):
    (folder / "images-0.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"images-0\.jsonl, line 1 is damaged"):
        read_results(folder)
    (folder / "run.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        check_run(folder, IDENTITY)


def test_results_are_not_written_through_a_link(folder, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (folder / "images-0.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="images-0"):
        ResultWriter(folder, 0)
    assert (tmp_path / "mine").read_text() == "mine"


def test_second_run_for_one_report_is_refused(tmp_path):
    """Also where the first has written its folder and nothing else; afterwards the report can be computed again."""
    output = tmp_path / "new" / "report.json"

    def score(index: int) -> dict:
        with pytest.raises(BlockingIOError, match="another command is writing") as caught:
            run_over_images(["a"], score, lambda entries: {}, output, IDENTITY)
        assert caught.value.filename == str(output)
        return {"key": "a"}

    for _ in range(2):
        assert run_over_images(["a"], score, lambda entries: {}, output, IDENTITY)["per_image"] == [{"key": "a"}]
        assert [path.name for path in output.parent.iterdir()] == ["report.json"]
