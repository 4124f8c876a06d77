"""Surfaces as files: GLB and OBJ with the photograph as texture, and points with its colours as PLY.

All have x to the right, y up and the camera at the origin, looking along -z, as glTF has it. Their unit is the metre.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..utils.files import atomic_write
from ..utils.imports import import_optional
from .surfaces import Surface

if TYPE_CHECKING:
    import trimesh

# Many graphics cards take no larger texture.
LARGEST_TEXTURE = 4096
EXTRA = "mesh"


def check_mesh_packages() -> None:
    """Checks that the package for meshes and points is installed.

    Raises:
        ImportError: If it is not, with the command that installs it.
    """
    _trimesh()


def save_glb(path: str | os.PathLike[str], surface: Surface, image: np.ndarray) -> None:
    """Writes a surface as a binary glTF file, with the image as its texture, which no light changes.

    Args:
        path: The file to write; GLB whatever its suffix.
        surface: The surface, with at least one triangle.
        image: H×W×3, uint8, sRGB; of the size of the surface's depth map.

    Raises:
        ImportError: If trimesh is not installed.
        ValueError: If the surface has no triangle, or the image another size or type.
    """
    trimesh = _trimesh()
    texture = _texture(image, surface)
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=texture, metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True
    )
    content = trimesh.Scene(_mesh(surface, material)).export(file_type="glb", tree_postprocessor=_without_light)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def save_obj(path: str | os.PathLike[str], surface: Surface, image: np.ndarray) -> None:
    """Writes a surface as an OBJ file, and its material and texture beside it.

    Args:
        path: The file to write. The two others have its name with the suffixes `.mtl` and `.png`.
        surface: As for `save_glb`.
        image: As for `save_glb`.

    Raises:
        ImportError: As `save_glb`.
        ValueError: As `save_glb`.
    """
    path = Path(path)
    # The OBJ file comes last: it names the others.
    for suffix, content in reversed(obj_files(surface, image, path.stem).items()):
        with atomic_write(path.with_name(path.stem + suffix)) as temporary:
            temporary.write_bytes(content)


def obj_files(surface: Surface, image: np.ndarray, name: str) -> dict[str, bytes]:
    """Makes the three files of a surface in the OBJ format.

    Args:
        surface: As for `save_glb`.
        image: As for `save_glb`.
        name: Name of the files without suffix: they refer to each other.

    Returns:
        The content of each file, by its suffix: `.obj`, `.mtl` and `.png`.

    Raises:
        ImportError: As `save_glb`.
        ValueError: As `save_glb`.
    """
    trimesh = _trimesh()
    white = [255, 255, 255, 255]
    material = trimesh.visual.material.SimpleMaterial(
        name=name, image=_texture(image, surface), ambient=white, diffuse=white, specular=[0, 0, 0, 255]
    )
    text, files = trimesh.exchange.obj.export_obj(
        _mesh(surface, material), include_normals=False, return_texture=True, mtl_name=f"{name}.mtl", header=None
    )
    return {".obj": text.encode(), ".mtl": files[f"{name}.mtl"], ".png": files[f"{name}.png"]}


def save_points(path: str | os.PathLike[str], surface: Surface, image: np.ndarray) -> None:
    """Writes the points of a surface with their colours as a binary PLY file.

    Args:
        path: The file to write; PLY whatever its suffix.
        surface: The surface; its triangles are left out.
        image: As for `save_glb`.

    Raises:
        ImportError: As `save_glb`.
        ValueError: If the image has another size or type.
    """
    colours = _checked(image, surface)[surface.pixels[:, 0], surface.pixels[:, 1]]
    cloud = _trimesh().PointCloud(_y_up(surface.points), colors=colours)
    with atomic_write(path) as temporary:
        temporary.write_bytes(cloud.export(file_type="ply"))


def _trimesh() -> Any:
    return import_optional("trimesh", EXTRA, "Writing meshes and points")


def _y_up(points: NDArray[np.float32]) -> NDArray[np.float32]:
    return points * np.array([1, -1, -1], dtype=points.dtype)


def _checked(image: np.ndarray, surface: Surface) -> np.ndarray:
    if image.shape != (*surface.shape, 3) or image.dtype != np.uint8:
        height, width = surface.shape
        raise ValueError(
            f"`image` must be uint8 of shape {(height, width, 3)}, as the depth map has it, "
            f"got {image.dtype} of shape {image.shape}."
        )
    return image


def _texture(image: np.ndarray, surface: Surface) -> Image.Image:
    texture = Image.fromarray(_checked(image, surface))
    texture.thumbnail((LARGEST_TEXTURE, LARGEST_TEXTURE), Image.Resampling.LANCZOS)
    return texture


def _mesh(surface: Surface, material: Any) -> trimesh.Trimesh:
    """Returns a mesh with a material that has a texture."""
    if len(surface.faces) == 0:
        raise ValueError(
            "the surface has no triangle: no two neighbouring pixels of the depth map lie on one surface."
        )
    trimesh = _trimesh()
    used = surface.without_lone_points()
    height, width = surface.shape
    # Texture coordinates from the lower left corner; pixel centres are half a pixel inside.
    uv = np.stack([(used.pixels[:, 1] + 0.5) / width, 1 - (used.pixels[:, 0] + 0.5) / height], axis=-1)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return trimesh.Trimesh(_y_up(used.points), used.faces, visual=visual, process=False)


def _without_light(tree: dict[str, Any]) -> None:
    """Marks the materials of a glTF tree: the photograph has its light already."""
    tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), "KHR_materials_unlit"]
    for material in tree["materials"]:
        material.setdefault("extensions", {})["KHR_materials_unlit"] = {}
