"""The package as users get it: built as a wheel, installed, and run from elsewhere."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.components import build_components
from helpers.repository import ROOT

import depthfm_diffusers
from depthfm_diffusers import DepthFMPipeline

BUNDLED = "depthfm_diffusers/pretrained/depthfm-tiny"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "depthfm_diffusers", source / "depthfm_diffusers", ignore=shutil.ignore_patterns("__py*"))
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A new virtual environment with the wheel installed, not editable; its libraries are those of the test run."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    libraries = {str(Path(module.__file__).parent.parent) for module in (np, pytest)}
    # Only what comes from a .pth is searched after the environment's own folder.
    (site / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n")
    return folder


def test_wheel_has_what_it_must(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    dist_info = f"depthfm_diffusers-{depthfm_diffusers.__version__}.dist-info"
    expected = {
        "depthfm_diffusers/py.typed",
        f"{dist_info}/licenses/LICENSE",
        f"{dist_info}/licenses/NOTICE",
        f"{BUNDLED}/ATTRIBUTION.md",
        f"{BUNDLED}/ATTRIBUTION.tsv",
    }
    expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "depthfm_diffusers").rglob("*.py")}
    expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / BUNDLED).rglob("*") if path.is_file()}
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests/", "training/", "benchmarks/", "examples/"))]
    entry_points = zipfile.ZipFile(wheel).read(f"{dist_info}/entry_points.txt").decode()
    assert "depthfm = depthfm_diffusers.cli:main" in entry_points


def test_bundled_model_is_small(wheel):
    weights = [info for info in zipfile.ZipFile(wheel).infolist() if info.filename.endswith(".safetensors")]
    assert sum(info.file_size for info in weights) <= 40e6


# Runs the script `depthfm`, then loads a folder, in one process: importing torch twice would take its time.
PROGRAM = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
import depthfm_diffusers, diffusers
diffusers.utils.logging.disable_progress_bar()
print(depthfm_diffusers.__file__)
print(type(diffusers.DiffusionPipeline.from_pretrained("model")).__name__)
"""


def test_installed_package_is_the_one_that_runs_and_predicts(environment, tmp_path):
    """With the bundled model; the checkout is neither the working folder nor on the path; nothing on stderr."""
    DepthFMPipeline(**build_components()).save_pretrained(tmp_path / "model")
    shutil.copy(ROOT / "examples" / "coffee.png", tmp_path)
    script = environment / "bin" / "depthfm"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    options = {"cwd": tmp_path, "env": clean, "capture_output": True, "text": True, "check": False}
    assert subprocess.run([script, "--version"], **options).stdout == f"depthfm {depthfm_diffusers.__version__}\n"
    command = [environment / "bin" / "python", "-c", PROGRAM, script, "predict", "coffee.png", "--output", "out"]
    done = subprocess.run(command, **options)
    assert (done.returncode, done.stderr) == (0, "")
    location, name = done.stdout.splitlines()[-2:]
    assert Path(location).is_relative_to(environment)
    assert name == "DepthFMPipeline"
    depth = np.load(tmp_path / "out" / "coffee_depth.npy", allow_pickle=False)
    assert depth.shape == (400, 600)
    assert depth.min() == 0
    assert depth.max() == 1


@pytest.mark.parametrize("name", ["depthfm_diffusers", "depthfm_diffusers.evaluation"])
def test_public_names_are_what_type_checkers_see(name):
    package = importlib.import_module(name)
    statements = ast.walk(ast.parse(Path(package.__file__).read_text(encoding="utf-8")))
    imports = [node for node in statements if isinstance(node, ast.ImportFrom) and node.level > 0]
    module_of = {alias.name: "." * node.level + node.module for node in imports for alias in node.names}
    for public in package.__all__:
        assert getattr(package, public) is getattr(importlib.import_module(module_of[public], name), public)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def test_version_is_the_same_everywhere():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.search(r"^## \[(.+?)\] - (\S+)$", changelog, re.MULTILINE).groups()
    assert version == depthfm_diffusers.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'\nversion: {version}\ndate-released: "{date}"\n' in citation


def test_every_dependency_is_pinned_in_the_constraints():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    names = {re.match(r"[\w-]+", requirement).group() for group in groups for requirement in group}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines}
    assert names - {"depthfm_diffusers"} <= pinned
    assert "torch==2.13.0" in lines


def test_every_model_that_asks_for_attribution_is_attributed():
    table = (ROOT / BUNDLED / "ATTRIBUTION.tsv").read_text(encoding="utf-8").splitlines()
    header, *rows = [line.split("\t") for line in table]
    assert header == ["id", "name", "creator", "licence"]
    assert all(len(row) == 4 and all(row) for row in rows)
    summary = (ROOT / BUNDLED / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for licence in {row[3] for row in rows}:
        count = sum(row[3] == licence for row in rows)
        assert f"| {count} 3D models |" in summary
