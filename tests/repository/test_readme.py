"""The README keeps its promises: links lead somewhere, its two commands are marked, its Python runs."""

from __future__ import annotations

import re

import pytest
import train_depth_controlnet
import train_depthfm
from helpers.components import build_components
from helpers.repository import ROOT

import depthfm_diffusers
from depthfm_diffusers import DepthFMPipeline

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["predict", "test"])
def test_each_command_is_one_line_that_makes_its_own_environment(name):
    (command,) = re.findall(rf"^<!-- ci:{name} -->\n```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert command.count("\n") == 1
    assert command.startswith("python3 -m venv ")


def test_local_links_exist():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert len(targets) >= 6
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_local_links_of_the_pages_exist(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_flags_named_on_the_training_page_exist():
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    flags = set(re.findall(r"(?<![\w-])--((?:no-)?[a-z0-9_]+)", page))
    known = {option[2:] for action in train_depthfm.build_parser()._actions for option in action.option_strings}
    other_programs = {"logdir", "model", "output", "repeats", "steps"}  # tensorboard, `depthfm predict`, a benchmark
    assert len(flags) > 30
    assert flags - known == other_programs


def test_training_flags_named_on_the_synthesis_page_exist():
    page = (ROOT / "docs" / "synthesis.md").read_text(encoding="utf-8")
    section = page[page.index("## Training a ControlNet") : page.index("## Does it follow the depth?")]
    flags = set(re.findall(r"(?<![\w-])--([a-z0-9_]+)", section))
    parser = train_depth_controlnet.build_parser()
    known = {option[2:] for action in parser._actions for option in action.option_strings}
    assert len(flags) > 15
    assert flags - known == {"prompt", "base", "output"}  # of `depthfm synthesize`


def test_quick_start_runs(tmp_path, monkeypatch):
    """As written, but for a tiny random model in place of the bundled one."""
    DepthFMPipeline(**build_components(), default_processing_resolution=64).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(depthfm_diffusers, "default_model_path", lambda: tmp_path / "model")
    monkeypatch.chdir(ROOT)
    namespace: dict[str, object] = {}
    exec(blocks("python")[0], namespace)
    assert namespace["output"].prediction.shape == (1, 400, 600, 1)
