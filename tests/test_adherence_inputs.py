"""What `depthfm adherence` reads: images in folders and prompt files; what is refused before a model is looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from controlnet_parts import build_controlnet, build_depth_estimator, build_image, build_stable_diffusion_pipeline

from depthfm_diffusers.cli import main
from depthfm_diffusers.evaluation.adherence_data import fingerprint, prompted_images


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders of a Stable Diffusion, a ControlNet and a depth model."""
    folder = tmp_path_factory.mktemp("models")
    base, estimator = build_stable_diffusion_pipeline("1.5"), build_depth_estimator()
    base.save_pretrained(folder / "base")
    estimator.save_pretrained(folder / "depth")
    build_controlnet(base.unet).save_pretrained(folder / "controlnet")
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, seed in (("a.png", 0), ("b.png", 1), ("more/a.png", 2)):
        build_image(seed).save(folder / name)
    return folder


def command(models: Path, output: Path, *arguments: object) -> list[str]:
    parts = ["--base", models / "base", "--controlnet", models / "controlnet", "--model", models / "depth"]
    return [str(one) for one in ["adherence", *arguments, *parts, "--steps", 2, "--output", output]]


def error_of(capsys) -> str:
    return capsys.readouterr().err


def test_run(models, photos, tmp_path, capsys):
    lines = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": ""}]
    lines += [{"file_name": "more/a.png", "text": "three"}, {"file_name": "absent.png", "text": "no"}]
    (photos / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    output = tmp_path / "new" / "r.json"
    arguments = [photos, photos / "more" / "a.png", "--prompts", photos / "metadata.jsonl"]
    assert main(command(models, output, *arguments)) == 0
    report = json.loads(output.read_text())
    assert [one["key"] for one in report["per_image"]] == ["a.png", "b.png", "more/a.png"]
    assert [one["prompt"] for one in report["per_image"]] == ["one", "", "three"]
    assert report["models"]["base"]["name"] == "base"
    assert len(report["models"]["controlnets"][0]["sha256"]) == 64
    assert str(tmp_path) not in output.read_text()
    assert output.with_suffix(".png").is_file()
    printed = capsys.readouterr().out
    assert "generated with its depth" in printed
    assert str(output) in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png"], "'shuffled' needs two images at least"),
        (["absent"], "no such file or folder"),
        (["a.png", "absent*.png"], "the pattern matches no file"),
        ([".", "--prompts", "prompts.txt"], "must be a .jsonl or a .csv file"),
        ([".", "--prompts", "absent.csv"], "No such file or directory"),
        ([".", "--output", "r.txt"], "its name must end in .json"),
        ([".", "--output", "r.json", "--contact-sheet", "r.json"], "give them different names"),
        ([".", "broken.png"], "broken.png is not an image"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_looked_for(photos, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(photos)
    (photos / "prompts.txt").write_text("a")
    if "broken.png" in arguments:
        (photos / "broken.png").write_bytes(b"broken")
    parts = [] if "--output" in arguments else ["--output", "r.json"]
    assert main(["adherence", *arguments, "--base", "absent_model", "--controlnet", "absent_model", *parts]) == 1
    assert message in error_of(capsys)
    assert not list(photos.glob("r.*"))


# Prompt files.


def test_csv_with_quotes_and_a_mark_of_its_encoding(photos):
    text = '\ufefffile_name,text\nb.png,"a room, ""red""\nand wide"\na.png,\n'
    (photos / "p.csv").write_text(text, encoding="utf-8")
    images = prompted_images([photos / "a.png", photos / "b.png"], prompts=photos / "p.csv")
    assert [one.prompt for one in images] == ["", 'a room, "red"\nand wide']


def test_json_text_with_separators_of_its_own(photos):
    """U+2028 ends a line for Python, not for JSON."""
    line = json.dumps({"file_name": "./a.png", "text": "a\u2028b"}, ensure_ascii=False)
    (photos / "p.jsonl").write_text(line + "\n\n", encoding="utf-8")
    assert prompted_images([photos / "a.png"], prompts=photos / "p.jsonl")[0].prompt == "a\u2028b"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"file_name": "a.png"}', "row 1 has no file_name or no text"),
        ("p.jsonl", '{"file_name": "a.png", "text": null}', "row 1 has no file_name or no text"),
        ("p.jsonl", "[1]", "row 1 has no file_name or no text"),
        ("p.jsonl", "{", "a line is not JSON"),
        ("p.jsonl", '{"file_name": "b.png", "text": "b"}', r"there is no prompt for a\.png"),
        ("p.csv", "file,text\na.png,a", "row 1 has no file_name or no text"),
        ("p.csv", "file_name,text\na.png", "row 1 has no file_name or no text"),
        ("p.csv", "file_name,text\na.png,a\n./a.png,b", "has several rows, the second is row 2"),
        ("p.csv", 'file_name,text\na.png,"a', "p.csv: unexpected end of data"),
        ("p.jsonl", b"\xff\xfe", "p.jsonl: 'utf-8' codec"),
    ],
)
def test_bad_prompt_files(photos, name, text, message):
    (photos / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        prompted_images([photos / "a.png"], prompts=photos / name)


def test_prompts_in_another_folder_go_by_name(photos, tmp_path):
    """But one that is for a file which is there, in a folder, is for no other file of that name."""
    (tmp_path / "p.csv").write_text("file_name,text\na.png,one\nelsewhere/b.png,two\n")
    assert prompted_images([photos / "b.png"], prompts=tmp_path / "p.csv")[0].prompt == "two"
    (photos / "p.csv").write_text("file_name,text\na.png,one\n")
    with pytest.raises(ValueError, match=r"there is no prompt for a\.png"):
        prompted_images([photos / "more" / "a.png"], prompts=photos / "p.csv")
    (tmp_path / "q.csv").write_text("file_name,text\nx/a.png,one\ny/a.png,two\n")
    with pytest.raises(ValueError, match=r"2 rows could be for a\.png"):
        prompted_images([photos / "a.png"], prompts=tmp_path / "q.csv")


def test_names_do_not_run_together_in_the_fingerprint(photos):
    files = [photos / "a.png", photos / "b.png"]
    assert fingerprint(prompted_images(files, "x")) != fingerprint(prompted_images(files, "y"))
    assert fingerprint(prompted_images(files)) != fingerprint(prompted_images(files[::-1]))
