"""Frames of RGB and metric depth: what one is, how its files are decoded, and how they lie on disk."""

from .decoding import (
    EncodedFrame,
    decode_frame,
    frame_error,
    has_camera,
)
from .frame import (
    Frame,
    FrameError,
    split_by_scene,
)
from .pairs import (
    FramePair,
    is_pair_folder,
    pair_files,
)
from .shards import index_shard

__all__ = [
    "EncodedFrame",
    "Frame",
    "FrameError",
    "FramePair",
    "decode_frame",
    "frame_error",
    "has_camera",
    "index_shard",
    "is_pair_folder",
    "pair_files",
    "split_by_scene",
]
