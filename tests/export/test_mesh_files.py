"""Meshes and points, opened again by readers that have nothing to do with the library that wrote them."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import plyfile
import pygltflib
import pytest
from helpers.solids import Camera
from PIL import Image

from depthfm_diffusers.export import meshes
from depthfm_diffusers.export.meshes import obj_files, save_glb, save_obj, save_points
from depthfm_diffusers.export.surfaces import Surface, SurfaceSettings, depth_surface

CAMERA = Camera()
VIEW = CAMERA.see(
    CAMERA.plane((0, -1, 0.2), 1.2), CAMERA.plane((0.3, 0, -1), 6.0), CAMERA.sphere((0.3, 0.3, 3.0), 0.6)
)
HEIGHT, WIDTH = VIEW.depth.shape
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SURFACE = depth_surface(VIEW.depth, VIEW.intrinsics, settings=SurfaceSettings(edge_width=0))


def accessor(gltf: pygltflib.GLTF2, number: int) -> np.ndarray:
    """The numbers of a glTF accessor."""
    found = gltf.accessors[number]
    view = gltf.bufferViews[found.bufferView]
    kinds = {pygltflib.FLOAT: np.float32, pygltflib.UNSIGNED_INT: np.uint32, pygltflib.UNSIGNED_SHORT: np.uint16}
    count = found.count * {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[found.type]
    start = (view.byteOffset or 0) + (found.byteOffset or 0)
    return np.frombuffer(gltf.binary_blob(), kinds[found.componentType], count, start).reshape(found.count, -1)


def rendered(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The depth that the camera of the map sees of a mesh (y up, looking along -z), 0 beside it."""
    x, y, z = (vertices * (1, -1, -1)).T
    k = VIEW.intrinsics
    columns, rows = k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]
    nearest = np.zeros((HEIGHT, WIDTH))  # inverse depth, which is linear on the screen
    for face in faces:
        u, v = columns[face], rows[face]
        left, right = max(0, int(np.ceil(u.min() - 1e-3))), min(WIDTH - 1, int(np.floor(u.max() + 1e-3)))
        top, bottom = max(0, int(np.ceil(v.min() - 1e-3))), min(HEIGHT - 1, int(np.floor(v.max() + 1e-3)))
        area = (u[1] - u[0]) * (v[2] - v[0]) - (u[2] - u[0]) * (v[1] - v[0])
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                second = ((column - u[0]) * (v[2] - v[0]) - (u[2] - u[0]) * (row - v[0])) / area
                third = ((u[1] - u[0]) * (row - v[0]) - (column - u[0]) * (v[1] - v[0])) / area
                weights = np.array([1 - second - third, second, third])
                if weights.min() > -1e-3:
                    nearest[row, column] = max(nearest[row, column], weights @ (1 / z[face]))
    return np.divide(1, nearest, where=nearest > 0, out=np.zeros_like(nearest))


def test_a_glb_seen_from_the_camera_has_the_depth_of_the_map(tmp_path):
    save_glb(tmp_path / "a.glb", SURFACE, IMAGE)
    gltf = pygltflib.GLTF2.load_binary(str(tmp_path / "a.glb"))
    ((primitive,),) = [mesh.primitives for mesh in gltf.meshes]
    vertices = accessor(gltf, primitive.attributes.POSITION)
    faces = accessor(gltf, primitive.indices).reshape(-1, 3)
    assert (vertices[:, 2] < 0).all(), "the camera looks along -z"
    assert all(node.matrix is None and node.translation is None for node in gltf.nodes)
    seen = rendered(vertices, faces)
    used = SURFACE.without_lone_points().pixels
    covered = np.zeros_like(VIEW.depth, dtype=bool)
    covered[used[:, 0], used[:, 1]] = True
    assert covered.mean() > 0.95
    np.testing.assert_allclose(seen[covered], VIEW.depth[covered], rtol=1e-3)


def test_a_glb_has_the_image_as_texture(tmp_path):
    save_glb(tmp_path / "a.glb", SURFACE, IMAGE)
    gltf = pygltflib.GLTF2.load_binary(str(tmp_path / "a.glb"))
    view = gltf.bufferViews[gltf.images[0].bufferView]
    content = gltf.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    with Image.open(io.BytesIO(content)) as texture:
        np.testing.assert_array_equal(np.asarray(texture.convert("RGB")), IMAGE)
    (primitive,) = gltf.meshes[0].primitives
    # glTF counts from the upper left corner; a texel's centre is half a texel inside.
    u, v = accessor(gltf, primitive.attributes.TEXCOORD_0).T
    pixels = SURFACE.without_lone_points().pixels
    np.testing.assert_allclose(u * WIDTH - 0.5, pixels[:, 1], atol=1e-3)
    np.testing.assert_allclose(v * HEIGHT - 0.5, pixels[:, 0], atol=1e-3)
    (material,) = gltf.materials
    assert material.doubleSided
    assert "KHR_materials_unlit" in material.extensions, "the photograph has its light already"
    assert gltf.extensionsUsed == ["KHR_materials_unlit"]


def test_an_obj_names_its_material_and_texture(tmp_path):
    save_obj(tmp_path / "my photo.obj", SURFACE, IMAGE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my photo.mtl", "my photo.obj", "my photo.png"]
    lines = [line.split() for line in (tmp_path / "my photo.obj").read_text().splitlines() if line]
    vertices = np.array([line[1:] for line in lines if line[0] == "v"], dtype=float)
    corners = np.array([[part.split("/")[:2] for part in line[1:]] for line in lines if line[0] == "f"], dtype=int)
    used = SURFACE.without_lone_points()
    np.testing.assert_allclose(vertices, used.points * (1, -1, -1), atol=1e-6)
    np.testing.assert_array_equal(corners[..., 0] - 1, used.faces)
    np.testing.assert_array_equal(corners[..., 1] - 1, used.faces)
    texture = np.array([line[1:] for line in lines if line[0] == "vt"], dtype=float)
    np.testing.assert_allclose((1 - texture[:, 1]) * HEIGHT - 0.5, used.pixels[:, 0], atol=1e-4)
    assert ["mtllib", "my", "photo.mtl"] in lines
    material = (tmp_path / "my photo.mtl").read_text()
    assert "map_Kd my photo.png" in material
    assert "Kd 1.0" in material, "nothing darkens the texture"
    with Image.open(tmp_path / "my photo.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), IMAGE)


def test_points_have_the_colours_of_their_pixels(tmp_path):
    save_points(tmp_path / "a.ply", SURFACE, IMAGE)
    data = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"]
    points = np.stack([data[axis] for axis in "xyz"], axis=1)
    np.testing.assert_array_equal(points, SURFACE.points * np.float32([1, -1, -1]))
    colours = np.stack([data[name] for name in ("red", "green", "blue")], axis=1)
    np.testing.assert_array_equal(colours, IMAGE[VIEW.depth > 0])


def test_large_textures_are_shrunk(tmp_path, monkeypatch):
    monkeypatch.setattr(meshes, "LARGEST_TEXTURE", 32)
    with Image.open(io.BytesIO(obj_files(SURFACE, IMAGE, "a")[".png"])) as texture:
        assert texture.size == (32, 24)


LONE = depth_surface(np.array([[2.0]]), np.eye(3))


@pytest.mark.parametrize("save", [save_glb, save_obj])
def test_a_point_alone_is_no_mesh(tmp_path, save):
    with pytest.raises(ValueError, match="the surface has no triangle"):
        save(tmp_path / "a", LONE, IMAGE[:1, :1])
    assert list(tmp_path.iterdir()) == []


def test_a_point_alone_is_a_cloud(tmp_path):
    save_points(tmp_path / "a.ply", LONE, IMAGE[:1, :1])
    assert plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"].count == 1


@pytest.mark.parametrize("save", [save_glb, save_obj, save_points])
@pytest.mark.parametrize("image", [IMAGE[:-1], IMAGE[..., 0], IMAGE / 255])
def test_an_image_that_does_not_fit_is_named(tmp_path, save, image):
    with pytest.raises(
        ValueError, match=r"`image` must be uint8 of shape \(48, 64, 3\), as the depth map has it, got"
    ):
        save(tmp_path / "a", SURFACE, image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", [save_glb, save_obj, save_points])
def test_the_missing_package_is_named(tmp_path, monkeypatch, save):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ImportError, match=r"needs trimesh: pip install 'depthfm_diffusers\[mesh\]'"):
        save(tmp_path / "a", SURFACE, IMAGE)


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.ply"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        save_points(path, SURFACE, IMAGE)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ply"]
    assert path.read_bytes() == b"old"


def test_lone_points_are_not_in_the_mesh():
    surface = Surface(np.zeros((4, 3), np.float32), np.zeros((4, 2), int), np.array([[1, 2, 3]]), (1, 4))
    used = surface.without_lone_points()
    assert len(used.points) == 3
    assert used.faces.tolist() == [[0, 1, 2]]
