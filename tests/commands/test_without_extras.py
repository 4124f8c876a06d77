"""The commands need none of the optional packages."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

from helpers.components import DATA, build_components
from helpers.controlnet_parts import build_controlnet, build_image, build_stable_diffusion_pipeline
from helpers.repository import ROOT
from helpers.shards import sloping_frame, write_pairs

from depthfm_diffusers import DepthFMPipeline

PROGRAM = """
import builtins
import sys

names = "datasets tensorboard wandb h5py omegaconf pillow_heif av cv2 trimesh OpenEXR sklearn"
for name in names.split():
    sys.modules[name] = None  # importing it fails, as if it were not installed
real_import = builtins.__import__


def import_without_yaml(name, globals=None, *others, **named):
    # huggingface_hub needs PyYAML; this package must not.
    if name == "yaml" and (globals or {}).get("__name__", "").startswith("depthfm_diffusers"):
        raise ImportError("PyYAML is blocked")
    return real_import(name, globals, *others, **named)


builtins.__import__ = import_without_yaml
from depthfm_diffusers import cli

ON_MODEL = ["--model", "model", "--device", "cpu"]
for arguments in (
    ["predict", "photo.png", "--output", "depth", *ON_MODEL],
    ["convert", "--checkpoint", sys.argv[1], "--vae", sys.argv[2], "--output", "converted"],
    ["evaluate", "--benchmark", "pairs", "--root", "pairs", "--output", "report.json", *ON_MODEL],
    ["synthesize", "photo.png", "--base", "base", "--controlnet", "net", "--prompt", "", "--steps", "2",
     "--output", "images", *ON_MODEL],
    ["adherence", "photo.png", "photo2.png", "--base", "base", "--controlnet", "net", "--steps", "2",
     "--output", "adherence.json", *ON_MODEL],
    ["bench", "--repeats", "1", "--steps", "1", "--marigold-steps", "1", *ON_MODEL],
):
    if cli.main(arguments) != 0:
        sys.exit(f"failed: {arguments}")
"""


def test_commands_work_without_the_packages_of_the_extras(tmp_path):
    DepthFMPipeline(**build_components(), default_processing_resolution=64).save_pretrained(tmp_path / "model")
    stable = build_stable_diffusion_pipeline()
    stable.save_pretrained(tmp_path / "base")
    build_controlnet(stable.unet).save_pretrained(tmp_path / "net")
    build_image().save(tmp_path / "photo.png")
    build_image().rotate(180).save(tmp_path / "photo2.png")
    write_pairs(tmp_path / "pairs", [sloping_frame(number) for number in range(2)], metadata=True)
    parity = DATA / "parity"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(parity / "depthfm-random.ckpt"), str(parity / "vae")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_only_training_needs_is_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for name in ("datasets", "PyYAML", "tensorboard"):
        assert not [line for line in project["dependencies"] if line.startswith(name)]
        assert [line for line in extras["train"] if line.startswith(name)]
    assert "train" in extras["test"][0]
