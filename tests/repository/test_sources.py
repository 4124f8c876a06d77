"""What holds for every source file, and no linter checks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from helpers.repository import ROOT

LINES = 450
# Words that are nouns where they come first.
NOUNS = {"Error", "Image", "Map", "Mean", "Name", "Number", "Path", "Set"}
CODE = [path for top in ("depthfm_diffusers", "training", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]
TEXT = [
    path for path in (ROOT / "docs", ROOT / "model_cards", ROOT / "examples") for path in sorted(path.glob("*.md"))
]
TEXT += [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "training").rglob("*.yaml")), ROOT / ".ci" / "run"]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name(path: Path) -> str:
    """A file's path in the repository."""
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_long():
    long = {name(path) for path in CODE if len(path.read_text(encoding="utf-8").splitlines()) > LINES}
    assert long == set()


@pytest.mark.parametrize("path", [*CODE, *TEXT], ids=name)
def test_no_path_of_one_machine(path):
    assert re.findall(r"(?<![\w.])/(?:home|root|opt|work|tmp|mnt|Users)/\w+", path.read_text(encoding="utf-8")) == []


def test_pictures_are_opened_in_one_place():
    """Elsewhere, formats that start programs would be opened, and no pixels be counted."""
    opens = re.compile(r"\b(Image|PIL\.Image)\.open\(|\b(imread|exif_transpose)\(|\bimageio\b|\bskimage\.io\b")
    code = [path for path in CODE if path.relative_to(ROOT).parts[0] in ("depthfm_diffusers", "training")]
    assert {name(path) for path in code if opens.search(path.read_text(encoding="utf-8"))} == set()


def summaries() -> dict[tuple[str, str], str]:
    """The first word of each docstring of a function of the package and the scripts, by where it is."""
    found = {}
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, FUNCTIONS) and (text := ast.get_docstring(node)):
                found[name(path), node.name] = re.match(r"\W*(\w*)", text).group(1)
    return found


def test_docstrings_are_in_the_third_person():
    """As in "Reads the file": no function's docstring begins with "Read", if another one's begins with "Reads"."""
    first = summaries()
    imperative = {word.removesuffix("s") for word in first.values() if re.fullmatch("[A-Z][a-z]{2,}s", word)}
    imperative |= {word.removesuffix("es") for word in first.values() if re.fullmatch("[A-Z][a-z]+(ch|sh|ss)es", word)}
    assert {"Return", "Read", "Check"} <= imperative
    wrong = {place: word for place, word in first.items() if word in imperative - NOUNS}
    assert wrong == {}
