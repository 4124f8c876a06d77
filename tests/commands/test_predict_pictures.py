"""`depthfm predict` on the files that people have: of many formats, too large, or no pictures."""

from __future__ import annotations

from helpers.picture_files import POSTSCRIPT, huge_gif, saved

from depthfm_diffusers import cli
from depthfm_diffusers.inference.input_files import collect_inputs


def test_a_folder_of_many_formats(model, tmp_path, image, capsys, caplog):
    photos = tmp_path / "photos"
    photos.mkdir()
    kinds = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c.jp2": "JPEG2000", "d.tga": "TGA", "e.pnm": "PPM", "f.avif": "AVIF"}
    for name, kind in kinds.items():
        (photos / name).write_bytes(saved(image.convert("RGB"), kind))
    (photos / "program.png").write_bytes(POSTSCRIPT)
    (photos / "bomb.gif").write_bytes(huge_gif(13000, 13000))
    (photos / "broken.webp").write_bytes(saved(image.convert("RGB"), "WEBP", exif=b"garbage"))
    for name in ("notes.txt", "drawing.eps"):
        (photos / name).write_text("text")
    out = tmp_path / "out"
    assert cli.main(["predict", str(photos), "--output", str(out), "--model", str(model), "--steps", "1"]) == 1
    captured = capsys.readouterr()
    assert "7 of 9 inputs written" in captured.out
    assert sorted(path.name[0] for path in out.glob("*_depth.png")) == list("abbcdef")
    (program,) = (line for line in captured.err.splitlines() if "program.png" in line)
    assert "is not an image: PostScript is a program, which is not run" in program
    (bomb,) = (line for line in captured.err.splitlines() if "bomb.gif" in line)
    assert "13000 x 13000 are 169,000,000 pixels, more than the limit of 120,000,000" in bomb
    assert "2 file(s) are left out, which are no pictures by suffix: drawing.eps, notes.txt." in caplog.text


def test_the_limit_is_a_flag(model, tmp_path, image, capsys):
    path = tmp_path / "a.png"
    image.save(path)
    pixels = image.width * image.height
    arguments = ["predict", str(path), "--output", str(tmp_path / "out"), "--model", str(model), "--steps", "1"]
    assert cli.main([*arguments, "--max-pixels", str(pixels - 1)]) == 1
    assert f"a.png is too large: {image.width} x {image.height} are {pixels:,}" in capsys.readouterr().err
    assert cli.main([*arguments, "--max-pixels", str(pixels)]) == 0


def test_results_of_an_earlier_run_are_not_spoken_of(tmp_path, image, caplog):
    image.save(tmp_path / "a.png")
    results = [tmp_path / "a_depth.png", tmp_path / "a_depth.npy"]
    for path in results:
        path.touch()
    assert collect_inputs([tmp_path], skip=results) == ([tmp_path / "a.png"], [])
    assert not caplog.records
