"""Masks of every depth and kind, and what is said of those that repaint nothing or everything."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from helpers.picture_files import orientation, saved
from PIL import Image

from depthfm_diffusers.inference.synthesis_inputs import read_mask_file
from depthfm_diffusers.pipelines.depthfm_controlnet.controlnet_inputs import load_masks

HALF = np.zeros((4, 6), np.float32)
HALF[:, 3:] = 1
SIZE = [(4, 6)]


def grey(share: float) -> np.ndarray:
    """A mask whose right half is of this grey; the rest is black."""
    return HALF * np.float32(share)


def repainted(mask: object) -> np.ndarray:
    """Where diffusers repaints."""
    (loaded,) = load_masks(mask, SIZE)
    return np.asarray(loaded) >= 127.5 if isinstance(loaded, Image.Image) else loaded[0].numpy() >= 0.5


PICTURES = {
    "8 bits": lambda values: Image.fromarray((values * 255).round().astype(np.uint8)),
    "16 bits": lambda values: Image.fromarray((values * 65535).round().astype(np.uint16)),
    "mode I": lambda values: Image.fromarray((values * 65535).round().astype(np.int32)),
    "floating point": Image.fromarray,
    "colour": lambda values: Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB"),
    "palette": lambda values: Image.fromarray((values * 255).round().astype(np.uint8)).convert("P"),
    "array": lambda values: values,
    "array of 8 bits": lambda values: (values * 255).round().astype(np.uint8),
    "array of 16 bits": lambda values: (values * 65535).round().astype(np.uint16),
    "tensor": torch.from_numpy,
    "tensor of 8 bits": lambda values: torch.from_numpy((values * 255).round().astype(np.uint8)),
}


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_the_values_of_masks_are_those_of_images(make, caplog):
    for share in (1.0, 0.6):
        assert np.array_equal(repainted(make(grey(share))), HALF == 1)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert not repainted(make(grey(0.2))).any()
    assert "`mask_image` is black everywhere: nothing of the image is repainted" in caplog.text
    with caplog.at_level(logging.WARNING):
        assert repainted(make(np.ones_like(HALF))).all()
    assert "`mask_image` is white everywhere: all of the image is repainted" in caplog.text


def test_transparency_is_white_as_in_images():
    mask = Image.new("LA", (6, 4), (0, 255))
    mask.paste((0, 0), (3, 0, 6, 4))
    assert np.array_equal(repainted(mask), HALF == 1)


def test_a_mask_is_turned_even_if_other_metadata_are_broken(tmp_path):
    mask = Image.fromarray((HALF.T * 255).astype(np.uint8))
    for value, exif in ((HALF, orientation(8)), (np.flip(HALF), orientation(6))):
        (tmp_path / "mask.png").write_bytes(saved(mask, "PNG", exif=exif))
        with Image.open(tmp_path / "mask.png") as opened:
            for one in (opened, read_mask_file(tmp_path / "mask.png")):
                assert repainted(one).shape == (4, 6)
        assert repainted(read_mask_file(tmp_path / "mask.png")).sum() == value.sum()
    (tmp_path / "mask.webp").write_bytes(saved(Image.fromarray(HALF * 255).convert("L"), "WEBP", exif=b"garbage"))
    with Image.open(tmp_path / "mask.webp") as opened:
        assert np.array_equal(repainted(opened), HALF == 1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.fromarray(HALF * 255), r"mode F\) cannot be read: .*\[0, 1\], got values from 0 to 255"),
        (Image.fromarray(HALF * np.float32("nan")), r"mode F\) cannot be read: it holds NaN"),
        (HALF * 1.01, r"values in \[0, 1\]"),
        (torch.from_numpy(HALF) - 0.01, r"values in \[0, 1\]"),
    ],
)
def test_values_that_are_no_mask_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        load_masks(mask, SIZE)


def test_rounding_is_no_overshoot():
    loaded = load_masks(HALF * np.float32(1 + 5e-7), SIZE)
    assert loaded.max() == 1


@pytest.mark.parametrize("values", [grey(0), grey(0.2)], ids=["black", "dark"])
@pytest.mark.parametrize("kind", ["8 bits", "16 bits"])
def test_the_command_refuses_a_mask_that_repaints_nothing(tmp_path, values, kind):
    PICTURES[kind](values).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"mask\.png: it is black everywhere"):
        read_mask_file(tmp_path / "mask.png")
