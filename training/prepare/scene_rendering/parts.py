"""What a scene is made of: furniture, blocks, lights, cameras. Metres; x and y on the ground, z up."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .catalogue import Model
from .geometry import Box, Camera, overlap, standing_box
from .shapes import Thing
from .surfaces import AreaLight, Colour, Sky, Surface

MIN_CAMERA_DISTANCE = 0.45  # metres to anything


@dataclass(frozen=True)
class Piece:
    """A model or a drawn thing in its place.

    Attributes:
        model: What it is.
        box: Where it is.
        support: Index of the piece that it stands on, -1 for none.
        paint: Colour that replaces the model's plain colours, but for their brightness; None: as the model has them.
    """

    model: Model | Thing
    box: Box
    support: int = -1
    paint: Colour | None = None


@dataclass(frozen=True)
class Block:
    """A box of the building or the street, and what it is made of."""

    box: Box
    surface: Surface


@dataclass(frozen=True)
class Shot:
    """A camera, with the settings of its lens and film. They change the picture, not the depth.

    Attributes:
        camera: Where it is.
        exposure: Stops over or under the usual.
        highlights: See `pictures.tone_map`.
        focus: Depth that is sharp, in metres.
        aperture: Radius of the lens's opening in metres; 0: everything is sharp.
        shake: By how much the picture moves during the exposure, right and down, as shares of its width.
        grain: Standard deviation of the film's noise at middle grey, of levels from 0 to 1.
        closest: Metres that everything must be away from the camera.
    """

    camera: Camera
    exposure: float
    highlights: float = np.inf
    focus: float = 1.0
    aperture: float = 0.0
    shake: tuple[float, float] = (0.0, 0.0)
    grain: float = 0.0
    closest: float = MIN_CAMERA_DISTANCE


@dataclass
class Scene:
    """All that the renderer needs."""

    number: int
    indoor: bool
    sky: Sky
    blocks: list[Block] = field(default_factory=list)
    # Windows' holes, and the half metre before them.
    openings: list[Box] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    lights: list[AreaLight] = field(default_factory=list)
    shots: list[Shot] = field(default_factory=list)

    @property
    def cameras(self) -> list[Camera]:
        """The cameras of all shots."""
        return [shot.camera for shot in self.shots]

    @property
    def exposures(self) -> list[float]:
        """Stops of exposure over or under the usual, one per camera."""
        return [shot.exposure for shot in self.shots]

    @property
    def boxes(self) -> list[Box]:
        """Bounding boxes of everything: first the blocks, then the pieces."""
        return [block.box for block in self.blocks] + [piece.box for piece in self.pieces]


def add_piece(
    scene: Scene,
    model: Model | Thing,
    box: Box,
    support: int = -1,
    paint: Colour | None = None,
    gap: float = 0.02,
) -> bool:
    """Adds a piece unless it would intersect anything but what it stands on; `gap`: metres to keep sideways."""
    for number, other in enumerate(scene.pieces):
        if number != support and overlap(box, other.box, gap):
            return False
    # Blocks that it stands on or hangs from end where it begins.
    if any(overlap(box, block.box) for block in scene.blocks):
        return False
    scene.pieces.append(Piece(model, box, support, paint))
    return True


def add_block(
    scene: Scene,
    size: tuple[float, float, float],
    x: float,
    y: float,
    bottom: float,
    surface: Surface,
    yaw: float = 0.0,
) -> None:
    """Adds a block unless it would stick in one that is there."""
    box = standing_box(size, x, y, bottom, yaw)
    if not any(overlap(box, block.box) for block in scene.blocks):
        scene.blocks.append(Block(box, surface))
