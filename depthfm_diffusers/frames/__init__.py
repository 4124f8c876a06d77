"""Frames of RGB and metric depth, and images with captions.

What a frame is and how its files are decoded, random access to all formats in which frames are stored, and the one
place that decides which format a file or folder is of. Nothing here needs torch (but for a camera given as a field of
view), and `datasets` is imported only when a table is read.
"""

from .decoding import EncodedFrame, decode_frame
from .frame import CaptionedImage, Frame, FrameError, split_by_scene
from .source_config import CaptionSourceConfig, SourceConfig
from .sources import CaptionedSource, FrameSource, open_captioned_source, open_source

__all__ = [
    "CaptionSourceConfig",
    "CaptionedImage",
    "CaptionedSource",
    "EncodedFrame",
    "Frame",
    "FrameError",
    "FrameSource",
    "SourceConfig",
    "decode_frame",
    "open_captioned_source",
    "open_source",
    "split_by_scene",
]
