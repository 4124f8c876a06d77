"""Builds a laid-out scene in Blender and renders radiance and planar depth with Cycles.

Runs in its own environment (`constraints-render.txt`): imports `bpy`, never torch or the package.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix, Vector

from .catalogue import Model, extract_model
from .geometry import Box, Camera, standing_box
from .materials import make_opaque, paint, remove_faces, surface_material
from .parts import Block, Piece, Scene
from .shapes import Slab, Thing
from .surfaces import AreaLight, Sky

SUPPORT_TOLERANCE = 0.02  # metres that a table top may differ under a thing
SHARP_EDGE = float(np.radians(40))  # between faces of a round part
SKY_STRENGTH = 0.12  # brings Blender's sky, in physical units, near the lamps indoors


class Renderer:
    """Renders scenes one after another.

    Args:
        folder: Scratch folder, for unpacked models and rendered layers.
        size: Width and height in pixels.
        samples: Samples per pixel, before denoising.
        threads: CPU threads; 0 for all.
        images: Textures for floors, walls and grounds.
        environments: Environment maps.
    """

    def __init__(
        self,
        folder: Path,
        size: tuple[int, int],
        samples: int = 8,
        threads: int = 0,
        images: Sequence[Path] = (),
        environments: Sequence[Path] = (),
    ) -> None:
        self.folder = folder
        self.size = size
        self.samples = samples
        self.threads = threads
        self.images = images
        self.environments = environments

    def build(self, scene: Scene) -> list[Model]:
        """Builds a scene, replacing the one before.

        Args:
            scene: What stands where.

        Returns:
            The catalogue's models in the scene: those for which a table has no flat place are left out.

        Raises:
            ValueError: If a model cannot be read.
        """
        with quiet():
            bpy.ops.wm.read_factory_settings(use_empty=True)
        self._set_up(scene.number)
        for block in scene.blocks:
            self._add_block(block)
        for light in scene.lights:
            _add_light(light)
        self._add_sky(scene.sky)
        models = []
        for piece in scene.pieces:
            if isinstance(piece.model, Thing):
                self._add_thing(piece.model, piece.box)
            elif self._add_piece(scene, piece, piece.model):
                models.append(piece.model)
        return models

    def render(self, camera: Camera, focus: float = 1.0, aperture: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Renders the scene that was built.

        Args:
            camera: From where.
            focus: Depth that is sharp, in metres.
            aperture: Radius of the lens's opening in metres; 0: everything is sharp. Depth always is: with an opening
                it is rendered once more, without.

        Returns:
            Linear radiance, H×W×3 float32, and planar depth in metres, H×W float32; the sky's depth is 1e10.
        """
        item = bpy.context.scene.camera
        right, down, forward = camera.axes
        item.matrix_world = Matrix(
            np.block([[np.stack([right, -down, -forward], 1), np.c_[list(camera.position)]]]).tolist()
        ).to_4x4()
        item.data.angle = camera.fov_x
        item.data.dof.use_dof = aperture > 0
        if aperture > 0:
            item.data.dof.focus_distance = focus
            item.data.dof.aperture_fstop = item.data.lens / 1000 / (2 * aperture)
        with quiet():
            bpy.ops.render.render()
        radiance, depth = self._read_layer("radiance")[..., :3], self._read_layer("depth")[..., 0]
        if aperture > 0:
            item.data.dof.use_dof = False
            cycles = bpy.context.scene.cycles
            cycles.samples, cycles.use_denoising = 1, False
            with quiet():
                bpy.ops.render.render()
            cycles.samples, cycles.use_denoising = self.samples, True
            self._read_layer("radiance")
            depth = self._read_layer("depth")[..., 0]
        return radiance, depth

    def _set_up(self, seed: int) -> None:
        """Cycles, a camera, and a compositor that writes radiance and depth as float files."""
        scene = bpy.context.scene
        render, cycles = scene.render, scene.cycles
        render.engine = "CYCLES"
        render.resolution_x, render.resolution_y = self.size
        render.resolution_percentage = 100
        render.use_persistent_data = True
        render.threads_mode = "FIXED" if self.threads else "AUTO"
        if self.threads:
            render.threads = self.threads
        cycles.device = "CPU"
        cycles.seed = seed
        cycles.samples = self.samples
        cycles.use_adaptive_sampling = False
        cycles.use_denoising = True
        cycles.denoiser = "OPENIMAGEDENOISE"
        cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = 4, 3, 2
        cycles.caustics_reflective = cycles.caustics_refractive = False
        cycles.sample_clamp_indirect = 4.0
        bpy.context.view_layer.use_pass_z = True

        camera = bpy.data.cameras.new("camera")
        camera.sensor_fit = "HORIZONTAL"
        camera.clip_start, camera.clip_end = 0.01, 5000.0
        scene.camera = bpy.data.objects.new("camera", camera)
        scene.collection.objects.link(scene.camera)

        scene.use_nodes = True
        nodes, links = scene.node_tree.nodes, scene.node_tree.links
        nodes.clear()
        layers = nodes.new("CompositorNodeRLayers")
        for name, socket in (("radiance", "Image"), ("depth", "Depth")):
            output = nodes.new("CompositorNodeOutputFile")
            output.base_path = str(self.folder)
            output.format.file_format = "OPEN_EXR"
            output.format.color_depth = "32"
            output.file_slots[0].path = f"{name}_"
            links.new(layers.outputs[socket], output.inputs[0])

    def _read_layer(self, name: str) -> np.ndarray:
        """A file that the compositor wrote, H×W×4, first row on top; the file is removed."""
        path = self.folder / f"{name}_{bpy.context.scene.frame_current:04d}.exr"
        image = bpy.data.images.load(str(path))
        image.colorspace_settings.name = "Non-Color"
        width, height = self.size
        pixels = np.empty(height * width * 4, dtype=np.float32)
        image.pixels.foreach_get(pixels)
        bpy.data.images.remove(image)
        path.unlink()
        return pixels.reshape(height, width, 4)[::-1]

    def _add_block(self, block: Block) -> None:
        """A box whose texture coordinates are metres along its faces."""
        half = np.array(block.box.size) / 2
        vertices, faces, coordinates = [], [], []
        for axis in range(3):
            # The face's horizontal and vertical directions; z is vertical where there is a choice.
            across, up = [(1, 2), (0, 2), (0, 1)][axis]
            for sign in (-1, 1):
                corners = []
                for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                    corner = np.zeros(3)
                    corner[[axis, across, up]] = sign * half[axis], a * half[across], b * half[up]
                    corners.append(corner)
                    # Measured from the lower corner of a wall, from the middle of a floor.
                    coordinates.append((corner[across], corner[up] + (half[up] if axis != 2 else 0.0)))
                faces.append(tuple(range(len(vertices), len(vertices) + 4)))
                vertices.extend(corners)
        mesh = bpy.data.meshes.new("block")
        mesh.from_pydata([tuple(vertex) for vertex in vertices], [], faces)
        mesh.uv_layers.new().data.foreach_set("uv", np.array(coordinates, dtype=np.float32).ravel())
        mesh.materials.append(surface_material(block.surface, self.images))
        item = bpy.data.objects.new("block", mesh)
        item.matrix_world = Matrix.Translation(block.box.centre) @ Matrix.Rotation(block.box.yaw, 4, "Z")
        bpy.context.scene.collection.objects.link(item)

    def _add_sky(self, sky: Sky) -> None:
        """An environment map, or sun, sky and clouds."""
        world = bpy.data.worlds.new("world")
        bpy.context.scene.world = world
        world.use_nodes = True
        nodes, links = world.node_tree.nodes, world.node_tree.links
        background = nodes["Background"]
        if sky.environment >= 0:
            texture = nodes.new("ShaderNodeTexEnvironment")
            texture.image = bpy.data.images.load(str(self.environments[sky.environment]), check_existing=True)
            mapping = nodes.new("ShaderNodeMapping")
            mapping.inputs["Rotation"].default_value = (0, 0, sky.azimuth)
            links.new(nodes.new("ShaderNodeTexCoord").outputs["Generated"], mapping.inputs["Vector"])
            links.new(mapping.outputs["Vector"], texture.inputs["Vector"])
            background.inputs["Strength"].default_value = sky.strength
            links.new(texture.outputs["Color"], background.inputs["Color"])
            return
        texture = nodes.new("ShaderNodeTexSky")
        texture.sky_type = "NISHITA"
        texture.sun_elevation, texture.sun_rotation = sky.elevation, sky.azimuth
        texture.sun_size = float(np.radians(1.5 + 8 * sky.clouds))
        texture.sun_intensity = 0.5 * (1 - 0.8 * sky.clouds)
        noise = nodes.new("ShaderNodeTexNoise")
        noise.inputs["Scale"].default_value = 3.0
        noise.inputs["Detail"].default_value = 6.0
        links.new(nodes.new("ShaderNodeTexCoord").outputs["Generated"], noise.inputs["Vector"])
        ramp = nodes.new("ShaderNodeMapRange")
        ramp.inputs["From Min"].default_value = 0.75 - 0.5 * sky.clouds
        ramp.inputs["From Max"].default_value = 0.95 - 0.5 * sky.clouds
        links.new(noise.outputs["Fac"], ramp.inputs["Value"])
        clouds = nodes.new("ShaderNodeMixRGB")
        clouds.inputs["Color2"].default_value = (9.0, 9.0, 9.3, 1)
        links.new(ramp.outputs["Result"], clouds.inputs["Fac"])
        links.new(texture.outputs["Color"], clouds.inputs["Color1"])
        background.inputs["Strength"].default_value = SKY_STRENGTH * sky.strength
        links.new(clouds.outputs["Color"], background.inputs["Color"])

    def _add_thing(self, thing: Thing, box: Box) -> None:
        """A drawn thing; its round parts are shaded smoothly."""
        turn = Matrix.Translation((*box.centre[:2], box.bottom)) @ Matrix.Rotation(box.yaw, 4, "Z")
        for part in thing.parts:
            vertices, faces, texture = part.mesh()
            mesh = bpy.data.meshes.new(thing.name)
            mesh.from_pydata(vertices.tolist(), [], faces)
            mesh.uv_layers.new().data.foreach_set("uv", texture.astype(np.float32).ravel())
            mesh.materials.append(surface_material(part.surface, self.images))
            if not isinstance(part, Slab):
                mesh.shade_smooth()
                mesh.set_sharp_from_angle(angle=SHARP_EDGE)
            item = bpy.data.objects.new(thing.name, mesh)
            item.matrix_world = turn
            bpy.context.scene.collection.objects.link(item)

    def _add_piece(self, scene: Scene, piece: Piece, model: Model) -> bool:
        """Adds a model; False if it is to stand on another that is not there or not flat below it."""
        box = piece.box
        if piece.support >= 0:
            height = _surface_height(scene.pieces[piece.support].box, box)
            if height is None:
                return False
            box = standing_box(box.size, *box.centre[:2], height + 0.001, box.yaw)
        item = self._import(model)
        if piece.paint:
            for material in item.data.materials:
                paint(material, piece.paint)
        turn = Matrix.Translation((*box.centre[:2], box.bottom)) @ Matrix.Rotation(box.yaw, 4, "Z")
        item.data.transform(turn)
        return True

    def _import(self, model: Model) -> bpy.types.Object:
        """Reads a model at its real size, the middle of its underside at the origin, its front to -y.

        Raises:
            ValueError: If it has no faces, or a picture cannot be read, which Blender would paint magenta.
        """
        path = self.folder / model.library.stem / model.path
        if not path.exists():
            path = extract_model(model, self.folder)
        with quiet():
            bpy.ops.wm.obj_import(
                filepath=str(path), forward_axis="Y", up_axis="Z", use_split_objects=False, use_split_groups=False
            )
        items = [item for item in bpy.context.selected_objects if item.type == "MESH"]
        if len(items) != 1 or not len(items[0].data.polygons):
            raise ValueError(f"{model.id}: {path} has {len(items)} meshes with faces, expected one")
        for image in bpy.data.images:
            if image.source == "FILE" and not image.size[0]:
                raise ValueError(f"{model.id}: {image.filepath} is not a readable picture; see --exclude_models")
        mesh = items[0].data
        hidden = {slot for slot, material in enumerate(mesh.materials) if material and make_opaque(material)}
        if hidden:
            remove_faces(mesh, hidden)
        # The file's coordinates have y up and the front along z; the library's rotation applies to those.
        rotation = np.array(model.rotation).reshape(3, 3)
        upright = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]) @ rotation
        vertices = np.empty(3 * len(mesh.vertices), dtype=np.float32)
        mesh.vertices.foreach_get("co", vertices)
        vertices = vertices.reshape(-1, 3).astype(np.float64) @ upright.T
        low, high = vertices.min(0), vertices.max(0)
        scale = np.array(model.size) / (high - low).clip(min=1e-9)
        middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        linear = np.diag(scale) @ upright
        mesh.transform(Matrix(np.c_[linear, -scale * middle].tolist()).to_4x4())
        return items[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what Blender's C code prints off the terminal; errors are still raised."""
    saved, sink = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(sink)


def _add_light(light: AreaLight) -> None:
    """A square lamp that is not seen itself."""
    lamp = bpy.data.lights.new("lamp", "AREA")
    lamp.size, lamp.energy, lamp.color = light.side, light.power, light.colour
    item = bpy.data.objects.new("lamp", lamp)
    turn = Vector((0, 0, -1)).rotation_difference(Vector(light.direction)).to_matrix().to_4x4()
    item.matrix_world = Matrix.Translation(light.position) @ turn
    item.visible_camera = False
    bpy.context.scene.collection.objects.link(item)


def _surface_height(support: Box, box: Box) -> float | None:
    """Height of the support's surface under a box, seen from above; None if it is not flat there."""
    bpy.context.view_layer.update()
    graph = bpy.context.evaluated_depsgraph_get()
    heights = []
    for x, y in [box.centre[:2], *(0.9 * (box.footprint - box.centre[:2]) + box.centre[:2])]:
        hit, point, *_ = bpy.context.scene.ray_cast(graph, (float(x), float(y), support.top + 0.01), (0, 0, -1))
        if not hit or point.z < support.bottom + 0.1:
            return None
        heights.append(point.z)
    return max(heights) if max(heights) - min(heights) < SUPPORT_TOLERANCE else None
