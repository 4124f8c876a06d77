"""The gallery: two photographs through a tiny model, and the committed page."""

from __future__ import annotations

import sys
from dataclasses import replace

import gallery
import pytest
from gallery import GAP, PANEL, VERDICTS, Table, load_photograph, main, read_table, wrap
from helpers.repository import ROOT
from PIL import Image

from depthfm_diffusers import default_model_path
from depthfm_diffusers.checkpoints.model_folder import model_fingerprint

PAGE = ROOT / "docs" / "gallery.md"
TABLE = read_table()
BY_NAME = {photograph.name: photograph for photograph in TABLE.photographs}


def test_page_and_pictures_of_two_photographs(pipe, tmp_path, monkeypatch, capsys):
    """One in an image file, whose depth was measured, and one in an array; the verdicts are of another model."""
    pipe.save_pretrained(tmp_path / "tiny")
    two = Table(TABLE.judged_model, "They differ.", [BY_NAME["motorcycle"], replace(BY_NAME["ascent"], verdict="bad")])
    monkeypatch.setattr(gallery, "read_table", lambda: two)
    page = tmp_path / "pages" / "own.md"
    main(["--model", str(tmp_path / "tiny"), "--output", str(page)])

    text = page.read_text(encoding="utf-8")
    fingerprint = model_fingerprint(tmp_path / "tiny")[:12]
    assert f"Model: `tiny` (SHA-256 `{fingerprint}…`), longer side 64 pixels" in text
    assert "were written for another model.**" in text
    out = capsys.readouterr().out
    assert f"the model's hash is {fingerprint}\n" in out
    assert "gallery.toml judges another model" in out
    assert "Of 2 photographs: " in text
    assert "They differ." in text
    assert text.count("AbsRel, aligned in depth, is 0.") == 1
    assert "## Staircase, black and white: bad" in text

    assert {path.name for path in (tmp_path / "pages" / "own").iterdir()} == {"motorcycle.webp", "ascent.webp"}
    for photograph, height in zip(two.photographs, (round(PANEL * 500 / 741), PANEL), strict=True):
        assert f"](own/{photograph.name}.webp)" in text
        with Image.open(tmp_path / "pages" / "own" / f"{photograph.name}.webp") as row:
            assert row.size == (3 * PANEL + 2 * GAP, height)
            # The photograph at the left, then colour: the staircase is grey, its depth is not.
            spread = [
                max(high - low for low, high in [row.crop(box).convert("HSV").getextrema()[1]])
                for box in ((0, 0, PANEL, height), (PANEL + GAP, 0, 2 * PANEL + GAP, height))
            ]
        if photograph.name == "ascent":
            assert spread[0] < 40 < 100 < spread[1]


def test_every_photograph_is_in_its_package():
    sizes = {name: load_photograph(photograph).size for name, photograph in BY_NAME.items()}
    assert len(sizes) == len(TABLE.photographs) == 12
    assert min(map(min, sizes.values())) >= 300
    assert sizes["ascent"] == (512, 512)


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"scikit-image has no data/none\.png, the photograph coffee of the"):
        load_photograph(replace(BY_NAME["coffee"], file="data/none.png"))
    monkeypatch.setitem(sys.modules, "pywt", None)
    with pytest.raises(
        ImportError, match=r"ascent of the gallery needs pywt: pip install 'depthfm_diffusers\[gallery\]"
    ):
        load_photograph(BY_NAME["ascent"])


def test_verdict_must_be_known():
    with pytest.raises(
        ValueError, match=r"gallery\.toml, coffee: `verdict` must be one of good, weak, bad, got 'fine'"
    ):
        replace(BY_NAME["coffee"], verdict="fine")


def test_committed_page_is_of_the_bundled_model_and_of_the_table():
    """If this fails, run `python benchmarks/quality/gallery.py` and look at the pictures: see its first lines."""
    text = PAGE.read_text(encoding="utf-8")
    fingerprint = model_fingerprint(default_model_path())
    assert f"`{fingerprint[:12]}…`" in text
    assert fingerprint.startswith(TABLE.judged_model)
    assert wrap(TABLE.comparison) in text
    flat = " ".join(text.split())
    for photograph in TABLE.photographs:
        assert f"## {photograph.title}: {photograph.verdict}\n" in text
        assert all(part in flat for part in (photograph.remark, photograph.credit, photograph.licence))
    for verdict in VERDICTS:
        count = sum(photograph.verdict == verdict for photograph in TABLE.photographs)
        assert f"{count} {verdict}" in flat


def test_committed_pictures_are_small():
    sizes = {path.name: path.stat().st_size for path in PAGE.with_suffix("").iterdir()}
    assert set(sizes) == {f"{name}.webp" for name in BY_NAME}
    assert max(sizes.values()) <= 60_000
    assert sum(sizes.values()) < 1_000_000
