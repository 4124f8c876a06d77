"""`depthfm predict` with points of known depth and with focal lengths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.picture_files import saved
from helpers.videos import moving_pictures, write_video
from PIL import Image

from depthfm_diffusers import cli
from depthfm_diffusers.inference.metric_files import MetricSettings, describe_fit, read_anchors


@pytest.fixture
def predict(model, tmp_path, monkeypatch, image):
    """Runs `depthfm predict ... --output out` in the temporary folder, which has photo.png and other.png."""
    monkeypatch.chdir(tmp_path)
    image.save("photo.png")
    image.transpose(Image.Transpose.ROTATE_180).save("other.png")

    def run(*arguments: object) -> int:
        return cli.main(["predict", *map(str, arguments), "--output", "out", "--model", str(model), "--steps", "1"])

    return run


def entries() -> dict[str, dict]:
    content = json.loads(Path("out/metadata.json").read_text())
    return {entry["name"]: entry for entry in content["images"]}


def extremes(name: str) -> list[tuple[int, int]]:
    """The pixels with the smallest, a middle and the largest predicted depth, x and y."""
    y = np.load(f"out/{name}_log_depth.npy")
    order = np.argsort(y, axis=None)
    return [np.unravel_index(order[i], y.shape)[::-1] for i in (0, y.size // 2, -1)]


def test_metres_by_two_points(predict, capsys):
    assert predict("photo.png") == 0
    (x0, y0), _, (x1, y1) = extremes("photo")
    assert predict("photo.png", "--anchor", f"{x0},{y0},1.5", "--anchor", f"{x1},{y1},6") == 0
    metres = np.load("out/photo_metres.npy")
    assert (metres.dtype, metres.shape) == (np.float32, (48, 72))
    assert (metres[y0, x0], metres[y1, x1]) == pytest.approx((1.5, 6))
    assert (metres.min(), metres.max()) == pytest.approx((1.5, 6))
    entry = entries()["photo"]
    with Image.open("out/photo_metres.png") as picture:
        assert picture.info["depth_scale"] == "0.001"
        np.testing.assert_allclose(np.asarray(picture) * entry["metres_png_scale"], metres, atol=6e-4)
    found = entry["metres"]
    assert (found["space"], found["points"], found["inliers"]) == ("log", 2, 2)
    assert found["anchors"][1] == {"x": x1, "y": y1, "metres": 6.0, "fitted": pytest.approx(6)}
    assert {"photo_metres.npy", "photo_metres.png"} <= set(entry["files"])
    assert "photo.png: metres from 2 points, which every prediction fits; they cover" in capsys.readouterr().err
    assert "_metres.npy" in json.loads(Path("out/metadata.json").read_text())["values"]


def test_points_of_several_images(predict, capsys):
    assert predict("photo.png", "other.png") == 0
    rows = [
        f"{name}.png,{x},{y},{m}"
        for name in ("photo", "other")
        for (x, y), m in zip(extremes(name), (1, 2, 4), strict=True)
    ]
    Path("points.csv").write_text("\n".join(["file_name,x,y,metres", *rows, "absent.png,1,1,1"]))
    assert predict("photo.png", "other.png", "--anchors", "points.csv") == 0
    assert [entries()[name]["metres"]["points"] for name in ("photo", "other")] == [3, 3]
    assert "other.png: metres from 3 points: median error" in capsys.readouterr().err


def test_an_image_without_points_does_not_stop_the_others(predict, capsys):
    Path("points.csv").write_text("file_name,x,y,metres\nphoto.png,1,1,1\nphoto.png,70,40,99\n")
    predict("photo.png", "other.png", "--anchors", "points.csv")
    captured = capsys.readouterr()
    assert "other.png: points.csv has no point of this image" in captured.err
    assert "of 2 inputs written" in captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.png", "other.png", "--anchor", "1,1,2"], "--anchor is for one image, got 2: for several, list"),
        (["photo.png", "--anchor", "1,1,2"], "photo.png: One point gives the scale of the depth, but not its range"),
        (["photo.png", "--anchor", "1,1,2", "--anchor", "72,1,3"], "x=72, y=1 with 3 m is outside the map of 72×48"),
        (["photo.png", "--anchor", "1,1,2", "--anchors", "a.csv"], "give one of the two"),
        (["photo.png", "--range-ratio", "4"], "--range-ratio needs a point of known depth"),
        (["photo.png", "--range-ratio", "1", "--anchor", "1,1,2"], "--range-ratio must be more than 1"),
        (["photo.png", "--focal-length", "0"], "--focal-length must be more than 0"),
        (["photo.png", "--anchors", "absent.csv"], "absent.csv"),
    ],
)
def test_what_is_refused(predict, capsys, arguments, message):
    assert predict(*arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(Path().glob("out/*_metres.*"))


@pytest.mark.parametrize("text", ["1,2", "1,2,0", "1,2,-3", "a,b,c", "1,2,nan"])
def test_anchors_of_another_form(predict, capsys, text):
    with pytest.raises(SystemExit):
        predict("photo.png", "--anchor", text)
    assert "must be X,Y,METRES with METRES above 0" in capsys.readouterr().err


def test_one_point_and_a_ratio(predict, capsys):
    assert predict("photo.png", "--anchor", "5,5,2", "--range-ratio", "4") == 0
    assert np.load("out/photo_metres.npy")[5, 5] == pytest.approx(2)
    assert "metres from 1 point and the range that was given" in capsys.readouterr().err


def test_the_focal_length_is_recorded(predict, image):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 36
    Path("phone.jpg").write_bytes(saved(image, "JPEG", exif=exif.tobytes()))
    assert predict("photo.png", "phone.jpg") == 0
    found = entries()
    assert found["photo"]["focal_length"] == {
        "pixels": pytest.approx(36 / np.tan(np.radians(27.5))),
        "source": "default",
        "fov_x_deg": pytest.approx(55),
    }
    assert found["phone"]["focal_length"]["source"] == "exif 35 mm equivalent"
    assert predict("photo.png", "--focal-length", "36") == 0
    assert entries()["photo"]["focal_length"] == {"pixels": 36, "source": "argument", "fov_x_deg": pytest.approx(90)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y,metres\n1,2,3\n", "row 1: the columns file_name, x, y, metres must hold"),
        ("file_name,x,y,metres\na.png,1,2,far\n", "row 1: the columns"),
        ("file_name,x,y,metres\na.png,1,2,3,4\n", "row 1 does not fit the columns"),
        ("file_name,x,y,metres\na.png,1,2\n", "row 1: the columns"),
        ("file_name,x,y,metres\nb.png,1,2,3\na.png,1,2,3\n", "row 2: a.png stands for"),
    ],
)
def test_files_of_points_that_are_refused(tmp_path, text, message):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_anchors(tmp_path / "points.csv", [tmp_path / "1" / "a.png", tmp_path / "2" / "a.png"])


def test_names_with_folders(tmp_path):
    (tmp_path / "points.csv").write_text("file_name;x;y;metres\n2/a.png;1;2;3\n")
    inputs = [tmp_path / "1" / "a.png", tmp_path / "2" / "a.png"]
    assert read_anchors(tmp_path / "points.csv", inputs) == {inputs[1]: [(1, 2, 3)]}
    assert MetricSettings().known_points(inputs) is None


def test_wrong_points_are_named():
    anchors = [{"x": 1, "y": 2, "metres": 3.0, "fitted": 3.1}, {"x": 4, "y": 5, "metres": 2.0, "fitted": 6.0}]
    fit = {"points": 9, "inliers": 8, "median_relative_error": 0.031, "range_covered": 0.75, "anchors": anchors}
    assert describe_fit(fit) == (
        "metres from 9 points: median error 3.1%; they cover 75% of the image's depths, the rest is extrapolated; "
        "1 left out as wrong; the farthest off is 4,5 (2 m, fitted 6 m)"
    )


def test_points_are_not_for_videos(predict, capsys):
    write_video(Path("clip.mp4"), moving_pictures(2))
    assert predict("clip.mp4", "--anchor", "1,1,2", "--anchor", "9,9,3") == 1
    assert "Points of known depth are for images, got a video" in capsys.readouterr().err
