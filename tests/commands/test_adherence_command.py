"""`depthfm adherence` on folders of tiny models: what it writes, and what it says of bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from helpers.components import build_components
from helpers.controlnet_parts import build_controlnet, build_image, build_pipelines
from helpers.stable_diffusion import build_stable_diffusion

from depthfm_diffusers import DepthFMPipeline, cli

FAST = ("--steps", "2", "--guidance-scale", "1")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    pipe = build_stable_diffusion(root / "base", "1.5")
    build_stable_diffusion(root / "other", "2.1")
    build_controlnet(pipe.unet).save_pretrained(root / "controlnet")
    DepthFMPipeline(
        **build_components(), default_num_inference_steps=1, default_processing_resolution=64
    ).save_pretrained(root / "depth")
    build_pipelines()[0].save_pretrained(root / "complete")
    return {name: root / name for name in ("base", "other", "controlnet", "depth", "complete")}


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        build_image(i).save(tmp_path / "photos" / f"photo{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def adherence(models, photos, tmp_path):
    def call(
        *more: object,
        base: str = "base",
        controlnet: str | None = "controlnet",
        depth: str | None = "depth",
        photos_more: tuple = (),
    ) -> int:
        words = [photos, *photos_more, "--base", models[base], "--output", tmp_path / "out" / "report.json", *FAST]
        words += ["--controlnet", models[controlnet]] if controlnet else []
        words += ["--model", models[depth]] if depth else []
        return cli.main(["adherence", *map(str, [*words, *more])])

    return call


def test_report_picture_and_table(adherence, tmp_path, capsys):
    assert adherence("--prompt", "a") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["images"] == 3
    assert [one["prompt"] for one in report["per_image"]] == ["a"] * 3
    assert report["settings"]["num_inference_steps"] == 2
    assert (tmp_path / "out" / "report.png").is_file()
    shown = capsys.readouterr().out
    assert "generated with its depth" in shown
    assert f"{report['mean']['shuffled']['delta1']:.3f}" in shown


def test_images_of_one_name_and_the_models_are_told_apart(adherence, photos, tmp_path):
    (photos / "more").mkdir()
    build_image(7).save(photos / "more" / "photo0.png")
    rows = [{"file_name": f"photo{i}.png", "text": "a" * i} for i in range(3)]
    rows += [{"file_name": "more/photo0.png", "text": "b"}, {"file_name": "absent.png", "text": "no"}]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = photos / "more" / "photo0.png"
    assert adherence("--prompts", photos / "metadata.jsonl", "--conditions", "none", photos_more=(more,)) == 0
    text = (tmp_path / "out" / "report.json").read_text()
    report = json.loads(text)
    assert [one["key"] for one in report["per_image"]] == ["photo0.png", "photo1.png", "photo2.png", "more/photo0.png"]
    assert [one["prompt"] for one in report["per_image"]] == ["", "a", "aa", "b"]
    assert report["models"]["base"]["name"] == "base"
    assert len(report["models"]["controlnets"][0]["sha256"]) == 64
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo0.png"], "'shuffled' needs two images at least"),
        (["absent"], "no such file or folder"),
        (["photo0.png", "absent*.png"], "the pattern matches no file"),
        ([".", "--prompts", "prompts.txt"], "must be a .jsonl or a .csv file"),
        ([".", "--prompts", "absent.csv"], "No such file or directory"),
        ([".", "--output", "r.txt"], "its name must end in .json"),
        ([".", "--output", "r.json", "--contact-sheet", "r.json"], "give them different names"),
        ([".", "broken.txt"], "broken.txt is not an image"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_looked_for(words, message, photos, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    (photos / "prompts.txt").write_text("a")
    (photos / "broken.txt").write_bytes(b"broken")
    output = [] if "--output" in words else ["--output", "r.json"]
    assert cli.main(["adherence", *words, "--base", "absent_model", "--controlnet", "absent_model", *output]) == 1
    assert message in capsys.readouterr().err
    assert not list(photos.glob("r.*"))


def test_nothing_but_an_earlier_report_is_overwritten(adherence, photos, tmp_path, capsys):
    mine = tmp_path / "mine.json"
    mine.write_text('{"mine": 1}')
    assert adherence("--output", mine) == 1
    assert "not a report of `depthfm adherence`" in capsys.readouterr().err
    assert mine.read_text() == '{"mine": 1}'
    photo = (photos / "photo0.png").read_bytes()
    assert adherence("--contact-sheet", photos / "photo0.png") == 1
    assert "not overwritten" in capsys.readouterr().err
    assert (photos / "photo0.png").read_bytes() == photo
    assert adherence("--conditions", "none") == 0
    assert adherence("--conditions", "none", "--prompt", "a") == 0


def test_a_saved_pipeline_is_all_that_is_needed(adherence, tmp_path):
    assert adherence(base="complete", controlnet=None, depth=None) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["images"] == 3


def test_a_prompt_per_image(adherence, photos, tmp_path):
    rows = [{"file_name": f"photo{i}.png", "text": "a" * i} for i in range(3)]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert adherence("--prompts", photos / "metadata.jsonl", "--conditions", "depth") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [one["prompt"] for one in report["per_image"]] == ["", "a", "aa"]
    (tmp_path / "prompts.csv").write_text("file_name,text\nphoto0.png,\nphoto1.png,a\nphoto2.png,aa\n")
    for left in (tmp_path / "out").iterdir():
        left.unlink()
    assert adherence("--prompts", tmp_path / "prompts.csv", "--conditions", "depth") == 0
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["per_image"] == report["per_image"]


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ((), {"base": "other"}, "attends to text embeddings of width"),
        ((), {"controlnet": None}, "has no ControlNet"),
        ((), {"base": "depth"}, "which is no Stable Diffusion"),
        ((), {"controlnet": "depth"}, "config.json"),
    ],
)
def test_bad_input_is_named(more, options, message, adherence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", None)  # no image may be made
    assert adherence(*more, **options) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"file_name": "photo0.png", "text": "a"}', "there is no prompt for photo1.png"),
        ('{"file_name": "photo0.png"}', "row 1 has no file_name or no text"),
        ("no json", "a line is not JSON"),
    ],
)
def test_bad_prompts_are_named(content, message, adherence, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text(content)
    assert adherence("--prompts", tmp_path / "prompts.jsonl") == 1
    assert message in capsys.readouterr().err


def test_damaged_base_is_named(adherence, models, tmp_path, capsys):
    damaged = shutil.copytree(models["base"], tmp_path / "damaged")
    (damaged / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    models = {**models, "damaged": damaged}
    assert cli.main(["adherence", str(tmp_path / "photos"), "--base", str(damaged), "--controlnet",
                     str(models["controlnet"]), "--output", str(tmp_path / "r.json")]) == 1  # fmt: skip
    assert str(damaged) in capsys.readouterr().err


def test_one_prompt_and_prompts_exclude_each_other(adherence, capsys):
    with pytest.raises(SystemExit):
        adherence("--prompt", "a", "--prompts", "b.csv")
    assert "not allowed with" in capsys.readouterr().err
