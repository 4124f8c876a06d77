"""A sheet of random frames with their depth."""

from __future__ import annotations

import frame_sheet
import numpy as np
import pytest
from helpers.shards import sloping_frame, write_shard
from PIL import Image

from depthfm_diffusers.frames import Frame


def test_tile_shows_near_as_red_far_as_blue_and_unknown_as_black():
    depth = np.array([[0.0, 1.0, 2.0, 50.0]] * 3, dtype=np.float32)
    image = np.full((3, 4, 3), 7, dtype=np.uint8)
    tile = frame_sheet.draw_tile(Frame("key", "scene", image, depth))
    assert tile.shape == (3, 8, 3)
    assert (tile[:, :4] == image).all()
    unknown, near, _, far = tile[0, 4:].astype(int)
    assert (unknown == 0).all()
    assert near[0] > 1.5 * near[2]
    assert far[2] > 1.5 * far[0]
    nothing = frame_sheet.draw_tile(Frame("key", "scene", image, np.zeros((3, 4), dtype=np.float32)))
    assert (nothing[:, 4:] == 0).all()


def test_sheet_holds_frames_of_both_formats():
    wide, tall = np.full((96, 256, 3), 200, dtype=np.uint8), np.full((256, 192, 3), 100, dtype=np.uint8)
    sheet = np.asarray(frame_sheet.draw_sheet([wide, tall, tall], 2))
    assert sheet.shape == (2 * 196, 2 * 516, 3)
    # The narrow one is in the middle of its place.
    columns = np.flatnonzero(sheet[96, 516:, 0] == 100)
    assert len(columns) == 144
    assert abs(columns.mean() - 257.5) <= 2


@pytest.mark.parametrize(("frames", "rows"), [(2, 1), (9, 2)])
def test_command_writes_at_most_all_frames(tmp_path, frames, rows):
    write_shard(tmp_path / "a.tar", [sloping_frame(number) for number in range(4)])
    sheet = tmp_path / "sheet.png"
    assert frame_sheet.main([str(tmp_path), str(sheet), "--frames", str(frames), "--columns", "2"]) == 0
    with Image.open(sheet) as picture:
        assert picture.height == rows * 196
