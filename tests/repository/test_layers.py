"""The house stands as CONTRIBUTING.md draws it: an import points down, never up, and never round in a circle."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from helpers.repository import ROOT

PACKAGE = "depthfm_diffusers"
# From the top down: a module imports modules of its own line or of lines below. The package itself, whose names are
# those of all layers, is for users and for the scripts only.
LAYERS = [
    ["cli", "commands", "__main__"],
    ["training"],
    ["evaluation"],
    ["inference"],
    ["checkpoints", "export"],
    ["pipelines"],
    ["schedulers", "models", "loaders", "pretrained"],
    [
        "control_image",
        "depth_normalization",
        "edge_aware_interpolation",
        "focal_length",
        "frames",
        "geometry",
        "image_processing",
        "line_fitting",
        "metric",
        "partial_depth",
        "temporal",
        "uncertainty",
    ],
    ["pictures"],
    ["utils"],
]
HEIGHT = {name: len(LAYERS) - i for i, names in enumerate(LAYERS) for name in names} | {"": len(LAYERS) + 1}


def modules(folder: Path) -> dict[str, Path]:
    """The modules of a package by their dotted names; a package's `__init__` has the package's name."""
    return {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(folder.rglob("*.py"))
    }


def imports(path: Path, name: str = "") -> Iterator[str]:
    """The dotted names that a file imports anywhere in it, save under `if TYPE_CHECKING`.

    Args:
        path: The file.
        name: Its own dotted name, for relative imports.

    Yields:
        `a.b` for `import a.b`; `a.b.c` for `from a.b import c`, whether that is a module or a name in one.
    """
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def arrows() -> set[tuple[str, str]]:
    """Which module of the package imports which other, by their names in it; "" is the package's own `__init__`."""
    known = modules(ROOT / PACKAGE)
    found = set()
    for name, path in known.items():
        targets = {n if n in known else n.rpartition(".")[0] for n in imports(path, name)}
        found |= {(name, target) for target in targets if target in known and target != name}
    return {tuple(name.removeprefix(PACKAGE).removeprefix(".") for name in arrow) for arrow in found}


def height(module: str) -> int:
    """Where the layer of a module is."""
    return HEIGHT[module.partition(".")[0]]


def test_every_folder_has_its_layer():
    assert {name.split(".")[1] for name in modules(ROOT / PACKAGE) if "." in name} <= set(HEIGHT)


def test_no_arrow_points_up():
    up = {(source, target) for source, target in arrows() if height(source) < height(target)}
    assert up == set()


@pytest.mark.parametrize("depth", [4, 2, 1], ids=["modules", "folders in a layer", "folders"])
def test_no_circles(depth):
    """Neither between modules, nor, by way of several modules, between folders."""
    graph: dict[str, set[str]] = {}
    for source, target in arrows():
        # The modules right in a folder of the package, beside its folders, stand for themselves at depth 2.
        one, other = (".".join(name.split(".")[:depth]) for name in (source, target))
        if one != other and source:
            graph.setdefault(one, set()).add(other)
    assert circle(graph) is None


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """A way through a graph that ends where it began, or `None`."""
    finished: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str] | None:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in finished:
            return None
        for target in sorted(graph.get(node, ())):
            if found := walk(target, [*way, node]):
                return found
        finished.add(node)
        return None

    return next((found for node in sorted(graph) if (found := walk(node, []))), None)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_imports_are_found(tmp_path):
    (tmp_path / "module.py").write_text(
        "import os.path\nfrom . import one\nfrom ..two import three\nif TYPE_CHECKING:\n    import never\n"
        "def function():\n    from four import five\n"
    )
    found = list(imports(tmp_path / "module.py", "a.b.module"))
    assert found == ["os.path", "a.b.one", "a.two.three", "four.five"]


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        (PACKAGE, ("training", "benchmarks", "tests")),
        ("training", ("benchmarks", "tests")),
        ("benchmarks", ("tests",)),
    ],
)
def test_the_package_knows_no_script_and_scripts_know_no_test(folder, others):
    """The package is below `training/`, that below `benchmarks/`, and nothing imports a test."""
    above = {path.stem for other in others for path in (ROOT / other).rglob("*.py")} - {"__init__"}
    above |= {"conftest", "helpers"}
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in (ROOT / folder).rglob("*.py")
        for name in imports(path, "." * len(path.parts))
        if name.partition(".")[0] in above
    }
    assert found == set()


def test_no_script_has_the_name_of_a_library():
    """The folder of a script is the first that Python looks in: its `datasets.py` would be everybody's `datasets`."""
    elsewhere = [
        folder
        for folder in sys.path
        if "site-packages" in folder or not Path(folder or ".").resolve().is_relative_to(ROOT)
    ]
    folders = {path.parent for top in ("training", "benchmarks") for path in (ROOT / top).rglob("*.py")}
    names = {path.stem for folder in folders for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    names -= {"__init__", "__pycache__"}
    assert {name for name in names if PathFinder.find_spec(name, elsewhere)} == set()
    assert names & set(sys.stdlib_module_names) == set()
