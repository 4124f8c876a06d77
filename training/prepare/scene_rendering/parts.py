"""What a scene is made of: furniture, blocks, lights, cameras. Metres; x and y on the ground, z up."""

from __future__ import annotations

from dataclasses import dataclass, field

from .catalogue import Model
from .geometry import Box, Camera, overlap, standing_box
from .surfaces import AreaLight, Sky, Surface


@dataclass(frozen=True)
class Piece:
    """A model in its place; `support` is the index of the piece that it stands on, -1 for none."""

    model: Model
    box: Box
    support: int = -1


@dataclass(frozen=True)
class Block:
    """A box of the building or the street, and what it is made of."""

    box: Box
    surface: Surface


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
    cameras: list[Camera] = field(default_factory=list)
    # Stops of exposure over or under the usual, one per camera.
    exposures: list[float] = field(default_factory=list)

    @property
    def boxes(self) -> list[Box]:
        """Bounding boxes of everything: first the blocks, then the pieces."""
        return [block.box for block in self.blocks] + [piece.box for piece in self.pieces]


def add_piece(scene: Scene, model: Model, box: Box, support: int = -1) -> bool:
    """Adds a piece unless it would intersect anything but what it stands on."""
    for number, other in enumerate(scene.pieces):
        if number != support and overlap(box, other.box, 0.02):
            return False
    # Blocks that it stands on or hangs from end where it begins.
    if any(overlap(box, block.box) for block in scene.blocks):
        return False
    scene.pieces.append(Piece(model, box, support))
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
