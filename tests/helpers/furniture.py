"""A tiny furniture library in Sweet Home 3D's layout, and a renderer of bounding boxes in place of Blender."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scene_rendering.catalogue import Model
from scene_rendering.geometry import Camera, cast
from scene_rendering.parts import Scene

HEADER = """# A comment = ignored
id=Test#Furniture
name=Tiny
license={licence}
"""

# id, name, category, width, depth, height in cm, further lines
PIECES = [
    ("cupboard", "Cupboard", "Bedroom", 80, 60, 180, {}),
    ("table", "Table", "Living room", 120, 80, 75, {"dropOnTopElevation": "75"}),
    ("sofa", "Sof\u00e1", "Living room", 180, 90, 80, {"dropOnTopElevation": "42"}),
    ("chair", "Chair", "Living room", 45, 45, 90, {}),
    ("vase", "Vase", "Living room", 15, 15, 30, {"dropOnTopElevation": "-1"}),
    ("cup", "Cup", "Kitchen", 8, 10, 9, {}),
    ("picture", "Picture", "Miscellaneous", 60, 4, 40, {"elevation": "140"}),
    ("door", "Door", "Doors and windows", 90, 14, 205, {"elevation": "0"}),
    ("lamp", "Lamp", "Lights", 40, 40, 50, {"elevation": "200"}),
    ("lying", "Lying box", "Miscellaneous", 50, 20, 100, {"modelRotation": "1 0 0 0 0 1 0 -1 0"}),
    ("car", "Car", "Vehicles", 180, 420, 150, {}),
    ("tree", "Tree", "Exterior", 300, 300, 600, {}),
    ("woman", "Woman", "Characters", 50, 40, 168, {}),
    # Not usable, each for another reason.
    ("mark", "Road mark", "Exterior", 70, 400, 0.3, {}),
    ("stairs", "Stairs", "Staircases", 150, 150, 300, {}),
    ("train", "Train", "Vehicles", 300, 2500, 350, {}),
    ("sitting", "Sitting man", "Characters", 60, 80, 130, {}),
    ("plug", "Plug", "Miscellaneous", 8, 4, 8, {"elevation": "30"}),
    ("broken", "Broken", "Bedroom", "wide", 10, 10, {}),
]

# A cube whose corners are not at unit distances; two materials, one of them half transparent.
CORNERS = [(x, y, z) for x in (-3, 5) for y in (0, 2) for z in (1, 2)]
FACES = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]
MATERIALS = """newmtl solid
Kd 0.8 0.1 0.1
map_Kd C:/Documents and Settings/author/wood.jpg
newmtl glass
Kd 0.1 0.8 0.1
d 0.4
map_Kd Here.PNG
newmtl gone
Kd 0.1 0.1 0.8
d 0.0
"""


def cube(name: str) -> str:
    """An OBJ file: four solid sides, two of glass, and an invisible face far off, as helpers of modellers are."""
    lines = [f"mtllib {name}.mtl", *(f"v {x} {y} {z}" for x, y, z in CORNERS)]
    lines += ["v -30 0 1", "v -30 0 2", "v -30 9 2", "usemtl solid"]
    for number, face in enumerate(FACES):
        lines += ["usemtl glass"] if number == 4 else []
        lines.append("f " + " ".join(map(str, face)))
    return "\n".join([*lines, "usemtl gone", "f 9 10 11"]) + "\n"


def green_picture() -> bytes:
    """A PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (20, 200, 20)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_library(path: Path, licence: str = "Public domain", picture: bytes | None = None) -> Path:
    """Writes the pieces above as one `.sh3f` library; their ids begin with the file's name."""
    text = HEADER.format(licence=licence)
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, title, category, width, depth, height, more) in enumerate(PIECES, start=1):
            folder = f"tiny/{name}"
            values = {
                "id": f"{path.stem}#{name}",
                "name": title,
                "category": category,
                "model": f"/{folder}/{name}.obj",
                "width": width,
                "depth": depth,
                "height": height,
                "creator": "Zo\\u0117",
                **more,
            }
            text += "\n" + "\n".join(f"{key}#{number}={value}" for key, value in values.items()) + "\n"
            archive.writestr(f"{folder}/{name}.obj", cube(name))
            archive.writestr(f"{folder}/{name}.mtl", MATERIALS)
            archive.writestr(f"{folder}/here.png", picture or green_picture())
        # A piece whose file is not in the archive.
        text += f"\nid#99={path.stem}#ghost\nmodel#99=/tiny/ghost.obj\nwidth#99=1\ndepth#99=1\nheight#99=1\n"
        archive.writestr("PluginFurnitureCatalog.properties", text.encode("latin-1"))
    return path


class BoxRenderer:
    """Renders bounding boxes, each in a colour of its own, with the methods of `scene_rendering.render.Renderer`."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.built: list[int] = []

    def build(self, scene: Scene) -> list[Model]:
        """Keeps the scene."""
        self.scene = scene
        self.built.append(scene.number)
        return [piece.model for piece in scene.pieces if isinstance(piece.model, Model)]

    def render(self, camera: Camera, focus: float = 1.0, aperture: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Radiance H×W×3 and planar depth H×W, the sky at 1e10; nothing is blurred."""
        depth, seen = cast(camera, self.scene.boxes, *self.size)
        colours = np.random.default_rng(0).uniform(0.05, 1, (len(self.scene.boxes) + 1, 3))
        return colours[seen].astype(np.float32), np.minimum(depth, 1e10).astype(np.float32)
