"""What earlier versions left on disk is still read: model folders, checkpoints, caches, reports, results.

The files are in `tests/data/compatibility/VERSION/`, made by `make.py` there with a checkout of that version.
"""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import diffusers
import numpy as np
import PIL
import pytest
import torch
import train_depth_controlnet
import train_depthfm
import transformers
from diffusers import DiffusionPipeline
from helpers.repository import ROOT
from PIL import Image
from safetensors.torch import load_file

import depthfm_diffusers
from depthfm_diffusers import DepthFMControlNetPipeline, DepthFMPipeline, cli
from depthfm_diffusers.evaluation.adherence import measures

DATA = ROOT / "tests" / "data" / "compatibility"
MODELS = sorted(path.relative_to(DATA).with_suffix("").as_posix() for path in DATA.glob("*/depthfm*.npz"))
# The stored values are equal to the bit on the processor that made them; others round sums differently.
TOLERANCE = 1e-4
VERSIONS = {
    "depthfm_diffusers": depthfm_diffusers.__version__,
    "python": platform.python_version(),
    "diffusers": diffusers.__version__,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "numpy": np.__version__,
    "pillow": PIL.__version__,
}


@pytest.fixture
def left(tmp_path, monkeypatch) -> Path:
    """A copy of what 0.4.0 left, as the current folder, to which the paths in it are relative."""
    folder = shutil.copytree(DATA / "0.4.0", tmp_path / "left")
    monkeypatch.chdir(folder)
    return folder


def picture() -> Image.Image:
    """The image that `make.py` predicts the depth of."""
    y, x = np.mgrid[0:48, 0:64].astype(np.float32)
    channels = [np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 13)]
    return Image.fromarray(np.stack([(c * 127 + 128).astype(np.uint8) for c in channels], axis=-1))


def flat(value: object, name: str = "") -> dict[str, object]:
    """The values of nested dictionaries and lists by their path."""
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in flat(child, f"{name}.{key}").items()}
    if isinstance(value, list):
        return {k: v for i, child in enumerate(value) for k, v in flat(child, f"{name}[{i}]").items()}
    return {name: value}


def assert_same_report(report: dict, before: dict) -> None:
    """Compares two reports: everything that the earlier one has, apart from the versions and the time.

    Numbers agree to `TOLERANCE`, but for the counts of pixels and edges (δ1, F1), where one pixel of 48×64 may differ.
    """
    one, other = flat(report), flat(before)
    assert other.keys() <= one.keys()
    for name, value in other.items():
        if name.startswith((".versions.", ".time.")) or name.endswith(".seconds"):
            continue
        if isinstance(value, float):
            tolerance = 2 / (48 * 64) if "delta" in name or "f1" in name else TOLERANCE
            assert one[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
        else:
            assert one[name] == value, name


def test_each_version_has_a_model_folder():
    assert {name.partition("/")[0] for name in MODELS} == {"0.1.0", "0.2.0", "0.3.0", "0.4.0"}


@pytest.mark.parametrize("name", MODELS)
def test_saved_folder_loads_and_predicts_what_it_did(name):
    expected = np.load(DATA / f"{name}.npz")
    own = DepthFMPipeline if "prediction" in expected else DepthFMControlNetPipeline
    found = {}
    for loader in (own, DiffusionPipeline):
        pipe = loader.from_pretrained(DATA / name, local_files_only=True)
        assert type(pipe) is own
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        if own is DepthFMPipeline:
            output = pipe(picture(), generator=generator)
            found[loader] = {"prediction": output.prediction, "log_depth": output.log_depth}
        else:
            # Up to 0.4 the noise of the depth was that of the image; by now it is drawn from another stream.
            arguments = {"depth_kwargs": {"generator": torch.Generator().manual_seed(0)}, "output_type": "np"}
            images = pipe("a", picture(), num_inference_steps=2, generator=generator, **arguments).images
            found[loader] = {"image": images}
    for key in expected.files:
        assert np.array_equal(found[own][key], found[DiffusionPipeline][key])
        np.testing.assert_allclose(found[own][key], expected[key], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("script", [train_depthfm, train_depth_controlnet], ids=lambda script: script.__name__)
@pytest.mark.usefixtures("fresh_accelerate_state")
def test_checkpoint_and_latent_cache(left, script):
    """The run is resumed from its checkpoint, with its `run_config.json`, on the cache as it is."""
    run = left / script.__name__
    cache = {path: path.stat().st_mtime_ns for path in run.glob("latents/*/*")}
    assert len(cache) == 1
    script.main(["--config", str(run / "run_config.json"), "--resume_from_checkpoint", "latest"])
    assert {path: path.stat().st_mtime_ns for path in run.glob("latents/*/*")} == cache
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    (trained,) = {*run.glob("unet/*.safetensors"), *run.glob("diffusion_pytorch_model.safetensors")}
    found, expected = load_file(trained), load_file(run.with_suffix(".safetensors"))
    assert found.keys() == expected.keys()
    # AdamW turns a gradient's last digits into steps of up to the learning rate where the gradient is nearly zero.
    difference = torch.cat([(found[name] - expected[name]).abs().flatten() for name in expected])
    assert difference.mean() < 1e-5
    assert difference.max() <= 4e-3


@pytest.mark.parametrize("command", ["evaluate", "adherence"])
def test_report_is_replaced_by_one_of_the_same_form(left, command, monkeypatch):
    # 0.4.0 drew the noise of the depth from the seed of the first image.
    monkeypatch.setattr(measures, "depth_seed", lambda seed: seed)
    path = left / f"{command}.json"
    before = json.loads(path.read_text())
    assert cli.main([*words(command), "--output", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["versions"] == VERSIONS
    assert_same_report(report, before)


@pytest.mark.parametrize("command", ["evaluate", "adherence"])
def test_stopped_run_is_resumed(left, command):
    """Its finished images are taken as they are: a score that was changed by hand is in the report."""
    partial = left / f"{command}_stopped.partial"
    identity = json.loads((partial / "run.json").read_text())
    # Another version refuses to resume a run: here it is about the files' form.
    identity["identity"]["versions"] = VERSIONS
    (partial / "run.json").write_text(json.dumps(identity))
    lines = [json.loads(line) for line in (partial / "images-0.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    scores = lines[0] if command == "evaluate" else lines[0]["depth"]
    scores["abs_rel"] = 0.125
    (partial / "images-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = left / f"{command}_stopped.json"
    assert cli.main([*words(command), "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    entries = {one["key"]: one for one in report["per_image"]}
    for line in lines:
        del line["seconds"]
        assert line.items() <= entries[line["key"]].items()
    assert report["images"] == 4
    assert not partial.exists()


def test_results_of_predict_are_replaced(left):
    """The folder's `metadata.json` is read: a result takes the place of the earlier one of the same file."""
    path = left / "predicted" / "metadata.json"
    path.write_text(path.read_text().replace("/where/this/was/made", str(left)))
    before, log_depth = json.loads(path.read_text()), np.load(left / "predicted" / "0_log_depth.npy")
    names = sorted(one.name for one in path.parent.iterdir())
    assert cli.main(["predict", "photos/0.png", "--model", "depthfm", "--output", "predicted"]) == 0
    assert sorted(one.name for one in path.parent.iterdir()) == names
    metadata = json.loads(path.read_text())
    assert [one["model"] for one in metadata["runs"]] == [one["model"] for one in before["runs"]]
    assert metadata["images"][0].pop("focal_length")["source"] == "default"  # since 0.7.0
    assert metadata["images"] == before["images"]
    np.testing.assert_allclose(np.load(left / "predicted" / "0_log_depth.npy"), log_depth, rtol=0, atol=TOLERANCE)


def words(command: str) -> list[str]:
    """The command line of a run, without its output."""
    if command == "evaluate":
        return ["evaluate", "--benchmark", "pairs", "--root", "frames", "--model", "depthfm", "--threads", "1"]
    return ["adherence", "photos", "--base", "depthfm_controlnet", "--steps", "2", "--guidance-scale", "1",
            "--threads", "1"]  # fmt: skip
