"""What the tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.components import build_components

from depthfm_diffusers import DepthFMPipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with a tiny random model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    DepthFMPipeline(**build_components(), default_processing_resolution=64).save_pretrained(folder)
    return folder
