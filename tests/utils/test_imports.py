"""Optional packages: what an error says if one is missing, or broken."""

from __future__ import annotations

import json
import sys

import pytest

from depthfm_diffusers.utils.imports import import_optional


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"^Hypersim needs h5py: pip install 'depthfm_diffusers\[prepare\]'$"):
        import_optional("h5py", "prepare", "Hypersim")
    assert import_optional("json", "prepare", "This") is json


def test_a_package_that_lacks_another_is_not_taken_for_missing(monkeypatch, tmp_path):
    (tmp_path / "half_installed.py").write_text("import not_installed_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_installed_at_all'"):
        import_optional("half_installed", "train", "This")
