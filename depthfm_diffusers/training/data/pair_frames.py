"""A folder of images and of depth maps as a data source; `depthfm_diffusers.frames.pairs` says how they lie."""

from __future__ import annotations

from pathlib import Path

from ...frames import (
    EncodedFrame,
    has_camera,
    pair_files,
)
from .frame_source import (
    FrameSource,
    SourceConfig,
    scene_name,
    warn_without_scenes,
)


class PairFrames(FrameSource):
    """Frames of a folder of images and a folder of depth maps.

    A frame's key is its path in these folders without the extension; it is its scene too if there are no metadata.

    Args:
        config: Settings of the source.
        folder: The folder that holds both.

    Raises:
        FileNotFoundError: If a subfolder is missing.
        ValueError: If files have no partner, or the metadata do not fit them.
    """

    def __init__(self, config: SourceConfig, folder: Path) -> None:
        self.pairs, metadata_file = pair_files(folder)
        self.keys = [pair.key for pair in self.pairs]
        scenes = self.keys
        if any("scene" in pair.metadata for pair in self.pairs):
            scenes = [
                scene_name(pair.metadata.get("scene"), f"Frame {pair.key!r} of {metadata_file}") for pair in self.pairs
            ]
        elif self.keys:
            warn_without_scenes(config)
        all_cameras = all(has_camera(pair.metadata) for pair in self.pairs)
        # The metadata first, then all images, then all depth maps: the order that the fingerprint is made in.
        files = [pair.image for pair in self.pairs] + [pair.depth for pair in self.pairs]
        super().__init__(config, [metadata_file, *files] if metadata_file else files, scenes, all_cameras)

    def encoded(self, index: int) -> EncodedFrame:
        """A frame as it is in its two files."""
        pair = self.pairs[index]
        return pair.encoded(self.scenes[index], self.config.frame_metadata(dict(pair.metadata)))
