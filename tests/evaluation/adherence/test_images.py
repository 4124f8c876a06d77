"""What measuring depth adherence reads: images with keys, and prompt files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.controlnet_parts import build_image

from depthfm_diffusers.evaluation.adherence.images import fingerprint, prompted_images


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, seed in (("a.png", 0), ("b.png", 1), ("more/a.png", 2)):
        build_image(seed).save(folder / name)
    return folder


def test_csv_with_quotes_and_a_mark_of_its_encoding(photos):
    text = '\ufefffile_name,text\nb.png,"a room, ""red""\nand wide"\na.png,\n'
    (photos / "p.csv").write_text(text, encoding="utf-8")
    images = prompted_images([photos / "a.png", photos / "b.png"], prompts=photos / "p.csv")
    assert [one.prompt for one in images] == ["", 'a room, "red"\nand wide']


def test_json_text_with_separators_of_its_own(photos):
    """U+2028 ends a line for Python, not for JSON."""
    line = json.dumps({"file_name": "./a.png", "text": "a\u2028b"}, ensure_ascii=False)
    (photos / "p.jsonl").write_text(line + "\n\n", encoding="utf-8")
    assert prompted_images([photos / "a.png"], prompts=photos / "p.jsonl")[0].prompt == "a\u2028b"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"file_name": "a.png"}', "row 1 has no file_name or no text"),
        ("p.jsonl", '{"file_name": "a.png", "text": null}', "row 1 has no file_name or no text"),
        ("p.jsonl", "[1]", "row 1 has no file_name or no text"),
        ("p.jsonl", "{", "a line is not JSON"),
        ("p.jsonl", '{"file_name": "b.png", "text": "b"}', r"there is no prompt for a\.png"),
        ("p.csv", "file,text\na.png,a", "row 1 has no file_name or no text"),
        ("p.csv", "file_name,text\na.png", "row 1 has no file_name or no text"),
        ("p.csv", "file_name,text\na.png,a\n./a.png,b", "has several rows, the second is row 2"),
        ("p.csv", 'file_name,text\na.png,"a', "p.csv: unexpected end of data"),
        ("p.jsonl", b"\xff\xfe", "p.jsonl: 'utf-8' codec"),
    ],
)
def test_bad_prompt_files(photos, name, text, message):
    (photos / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        prompted_images([photos / "a.png"], prompts=photos / name)


def test_prompts_in_another_folder_go_by_name(photos, tmp_path):
    """But one that is for a file which is there, in a folder, is for no other file of that name."""
    (tmp_path / "p.csv").write_text("file_name,text\na.png,one\nelsewhere/b.png,two\n")
    assert prompted_images([photos / "b.png"], prompts=tmp_path / "p.csv")[0].prompt == "two"
    (photos / "p.csv").write_text("file_name,text\na.png,one\n")
    with pytest.raises(ValueError, match=r"there is no prompt for a\.png"):
        prompted_images([photos / "more" / "a.png"], prompts=photos / "p.csv")
    (tmp_path / "q.csv").write_text("file_name,text\nx/a.png,one\ny/a.png,two\n")
    with pytest.raises(ValueError, match=r"2 rows could be for a\.png"):
        prompted_images([photos / "a.png"], prompts=tmp_path / "q.csv")


def test_names_do_not_run_together_in_the_fingerprint(photos):
    files = [photos / "a.png", photos / "b.png"]
    assert fingerprint(prompted_images(files, "x")) != fingerprint(prompted_images(files, "y"))
    assert fingerprint(prompted_images(files)) != fingerprint(prompted_images(files[::-1]))


def test_keys_are_paths_below_what_all_have_in_common(photos):
    files = [photos / "a.png", photos / "more" / "a.png"]
    assert [one.key for one in prompted_images(files)] == ["a.png", "more/a.png"]
    assert [one.key for one in prompted_images(files[1:], "x")] == ["a.png"]
