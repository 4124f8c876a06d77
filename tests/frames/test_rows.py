"""Captions and metadata in CSV files and JSON lines: what is text stays text."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from helpers.captioned import write_image_folder
from helpers.shards import sloping_frame, write_pairs

from depthfm_diffusers.evaluation.adherence.images import prompted_images
from depthfm_diffusers.frames import CaptionSourceConfig, SourceConfig, open_captioned_source, open_source

# What readers of tables take for something else.
TEXTS = [
    "NA",
    "1984",
    "",
    "null",
    "None",
    "NaN",
    "n/a",
    "True",
    "1e5",
    "inf",
    "007",
    "2020-01-01",
    "#N/A",
    "é; è",
    " a ",
]


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_image_folder(tmp_path / "photos", count=len(TEXTS), captioned=False)


def cell(text: str) -> str:
    return f'"{text}"' if ";" in text else text


def captions(folder: Path) -> list[str]:
    source = open_captioned_source(CaptionSourceConfig(str(folder)))
    assert source.keys == [f"photo{number}.png" for number in range(len(source))]
    return [source[number].caption for number in range(len(source))]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("form", ["{}", "\ufeff{}"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.CSV"])
def test_captions_in_csv_are_text(folder, delimiter, form, end, name):
    rows = [["file_name", "text"], *([f"photo{n}.png", cell(text)] for n, text in enumerate(TEXTS))]
    text = end.join(delimiter.join(row) for row in rows)
    (folder / name).write_bytes(form.format(text).encode())
    assert captions(folder) == TEXTS
    if name.islower():
        files = [folder / f"photo{n}.png" for n in range(len(TEXTS))]
        assert [one.prompt for one in prompted_images(files, prompts=folder / name)] == TEXTS


@pytest.mark.parametrize("text", TEXTS)
def test_captions_in_json_lines_are_text(folder, text):
    """Each alone, as a type is chosen for a whole column."""
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "photo0.png", "text": text}))
    assert captions(folder) == [text]


def test_text_with_commas_quotes_and_lines_of_its_own(folder):
    (folder / "metadata.csv").write_text('file_name, text\nphoto0.png,"a, ""b""\nc"\nphoto1.png,\n')
    assert captions(folder) == ['a, "b"\nc', ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,text\nphoto0.png,é\n".encode("latin-1"), r"metadata\.csv: .*save the file as UTF-8"),
        ("file_name,text\nphoto0.png,a\n".encode("utf-16"), r"metadata\.csv: .*save the file as UTF-8"),
        (b"file_name,text\nphoto0.png,a, b\n", r"metadata\.csv, row 1 does not fit the columns"),
        (b'file_name,text\nphoto0.png,"a\n', r"metadata\.csv: unexpected end of data"),
        (b"file,text\nphoto0.png,a\n", r"cannot be read: `file_name` .* is missing in .*metadata\.csv"),
        (b"sep=;\nfile_name;text\nphoto0.png;a\n", r"metadata\.csv, row 1 does not fit|`file_name` .* is missing"),
        (b"image,file_name\na,photo0.png\n", r"metadata\.csv has two columns for 'image'"),
        (b"", r"cannot be read: `file_name`"),
    ],
)
def test_what_is_no_such_table_is_refused_by_name(folder, content, message):
    (folder / "metadata.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        captions(folder)


def test_latin_1_beside_pairs_and_prompts_is_refused_by_name(tmp_path):
    folder = write_pairs(tmp_path / "pairs", [sloping_frame(0)])
    (folder / "metadata.csv").write_bytes("file_name,scene\nframe0000.png,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"metadata\.csv cannot be read .*save the file as UTF-8"):
        open_source(SourceConfig(str(folder)))
    (tmp_path / "p.csv").write_bytes("file_name,text\nframe0000.png,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"p\.csv: .*save the file as UTF-8"):
        prompted_images([folder / "images" / "frame0000.png"], prompts=tmp_path / "p.csv")


def test_numbers_of_pairs_may_be_in_any_csv(tmp_path):
    folder = write_pairs(tmp_path / "pairs", [sloping_frame(0)])
    (folder / "Metadata.csv").write_text("file_name;scene;fov_x_deg;depth_scale\nframe0000.png;007;60;0.01\n")
    source = open_source(SourceConfig(str(folder)))
    assert source.scenes == ["007"]
    assert source.has_intrinsics


def test_a_table_without_captions_is_said(folder, caplog):
    (folder / "metadata.csv").write_text("file_name,Text\nphoto0.png,a\n")
    with caplog.at_level(logging.WARNING):
        assert captions(folder) == [""]
    assert "has no column of captions (text, caption, prompt), but ['image', 'Text']" in caplog.text
