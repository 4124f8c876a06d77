"""Listing folders: what systems leave is passed over, and linked folders are followed once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from depthfm_diffusers.utils.folders import expand_pattern, files_below, is_junk

JUNK = [
    ".hidden.png",
    "._a.png",
    ".DS_Store",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "Desktop.ini",
    "Icon\r",
    "__MACOSX/a.png",
    "__MACOSX/b/._a.png",
    ".ipynb_checkpoints/a-checkpoint.png",
    "b/.ipynb_checkpoints/a.png",
    ".Trashes/a.png",
    "$RECYCLE.BIN/a.png",
    "System Volume Information/a.png",
    "@eaDir/a.png",
    "lost+found/a.png",
]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_below(folder)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Its own path is hidden, which does not matter."""
    return tmp_path / ".cache" / "__MACOSX" / "photos"


def test_junk_is_passed_over(folder):
    write(folder, "a.png", "b/c.png", "b.d/..e.png", "macosx/a.png", "thumbs/a.db", *JUNK)
    assert below(folder) == ["a.png", "b/c.png", "macosx/a.png", "thumbs/a.db"]
    assert [name for name in JUNK if not is_junk(name)] == []
    assert not is_junk("./b/../c.png")
    found = [path.relative_to(folder).as_posix() for path in expand_pattern(f"{folder}/**/*.png")]
    assert found == ["a.png", "b/c.png", "macosx/a.png"]
    assert expand_pattern(f"{folder}/*/a.png") == [folder / "macosx" / "a.png"]
    assert expand_pattern(f"{folder}/.hid*.png") == [folder / ".hidden.png"], "the pattern has the dot"
    assert expand_pattern(f"{folder}/__MACOSX/*.png") == [folder / "__MACOSX" / "a.png"], "it is named"


def test_linked_folders_are_followed_once(folder, tmp_path):
    write(folder, "real/deep/a.png")
    write(tmp_path / "elsewhere", "b.png", "sub/c.png", ".ipynb_checkpoints/b.png")
    (folder / "alias").symlink_to(folder / "real")
    (folder / "z").symlink_to(tmp_path / "elsewhere")
    (folder / "y").symlink_to(tmp_path / "elsewhere")
    (folder / "real" / "loop").symlink_to(folder)
    (folder / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "real")
    (folder / "broken").symlink_to(tmp_path / "gone")
    (folder / "file.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    expected = ["file.png", "real/deep/a.png", "y/b.png", "y/sub/c.png"]
    assert below(folder) == expected
    assert expand_pattern(f"{folder}/**/*.png") == [folder / name for name in expected]
    (tmp_path / "link").symlink_to(folder)
    assert below(tmp_path / "link") == expected, "the folder itself may be a link"


def test_patterns(folder, monkeypatch):
    write(folder, "a.png", "b/a.png", "b/c/a.png", "b/c/x[1].png", "bb/a.txt")
    monkeypatch.chdir(folder)

    def found(pattern: str) -> list[str]:
        return [path.as_posix() for path in expand_pattern(pattern)]

    assert found("**/*.png") == ["a.png", "b/a.png", "b/c/a.png", "b/c/x[1].png"]
    assert found("b/**/a.*") == ["b/a.png", "b/c/a.png"]
    assert found("b*/**/a.*") == ["b/a.png", "b/c/a.png", "bb/a.txt"]
    assert found("**/c/*") == ["b/c/a.png", "b/c/x[1].png"]
    assert found("**/x[[]1].png") == ["b/c/x[1].png"]
    assert found("b*") == ["b", "bb"]
    assert found("gone/**/*.png") == found("*.webp") == []
    assert found("**/c") == ["b/c"], "folders too"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(folder):
    write(folder, "a/b.png")
    (folder / "a").chmod(0)
    with pytest.raises(PermissionError, match="photos/a"):
        files_below(folder)
