"""Blender's materials: those of drawn surfaces, and changes to those of the catalogue's models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bpy
import numpy as np

from .patterns import PATTERNS, draw_pattern
from .surfaces import Colour, Surface

INVISIBLE = 0.05  # opacity under which faces are removed instead of made opaque


def surface_material(surface: Surface, images: Sequence[Path]) -> bpy.types.Material:
    """A material of nodes, on texture coordinates in metres."""
    material = bpy.data.materials.new(surface.kind)
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    shader = nodes["Principled BSDF"]
    shader.inputs["Roughness"].default_value = surface.roughness
    shader.inputs["Metallic"].default_value = surface.metallic
    shader.inputs["Base Color"].default_value = (*surface.colour, 1)
    if surface.kind == "plain":
        return material
    # Blender's brick joints are at most 0.25 units wide: wide ones need a larger unit.
    unit = max(1.0, 4.2 * surface.joint)
    mapping = nodes.new("ShaderNodeMapping")
    links.new(nodes.new("ShaderNodeTexCoord").outputs["UV"], mapping.inputs["Vector"])
    drawn = surface.kind in PATTERNS
    scale = (1 / unit,) * 3
    if drawn or surface.kind == "image":
        scale = (1 / surface.size[0], 1 / surface.size[1], 1)
    mapping.inputs["Scale"].default_value = scale
    if surface.kind == "bricks":
        texture = nodes.new("ShaderNodeTexBrick")
        texture.offset = surface.offset
        for name, value in (
            ("Scale", 1.0),
            ("Brick Width", surface.size[0] / unit),
            ("Row Height", surface.size[1] / unit),
            ("Mortar Size", surface.joint / unit / 2),
            ("Mortar Smooth", 0.0),
            ("Color1", (*surface.colour, 1)),
            ("Color2", (*(0.8 * np.array(surface.colour)), 1)),
            ("Mortar", (*surface.second, 1)),
        ):
            texture.inputs[name].default_value = value
        colour = texture.outputs["Color"]
    elif surface.kind == "noise":
        texture = nodes.new("ShaderNodeTexNoise")
        texture.inputs["Scale"].default_value = 1 / surface.size[0]
        texture.inputs["Detail"].default_value = 4.0
        colour = _mix(material.node_tree, texture.outputs["Fac"], surface.colour, surface.second)
    else:
        texture = nodes.new("ShaderNodeTexImage")
        texture.image = (
            _draw_image(surface) if drawn else bpy.data.images.load(str(images[surface.image]), check_existing=True)
        )
        tint = nodes.new("ShaderNodeMixRGB")
        tint.blend_type = "MULTIPLY"
        tint.inputs["Fac"].default_value = 1.0
        tint.inputs["Color2"].default_value = (*surface.colour, 1)
        links.new(texture.outputs["Color"], tint.inputs["Color1"])
        colour = tint.outputs["Color"]
    links.new(mapping.outputs["Vector"], texture.inputs["Vector"])
    links.new(colour, shader.inputs["Base Color"])
    return material


def _draw_image(surface: Surface) -> bpy.types.Image:
    """A drawn pattern as Blender's image."""
    pixels = draw_pattern(surface.kind, surface.image)
    size = len(pixels)
    image = bpy.data.images.new(surface.kind, size, size)
    # The first row is Blender's lowest.
    image.pixels.foreach_set(np.dstack([pixels[::-1], np.ones((size, size), dtype=np.float32)]).ravel())
    image.pack()
    return image


def _mix(tree: bpy.types.NodeTree, factor: bpy.types.NodeSocket, first: Sequence[float], second: Sequence[float]):
    """Two colours mixed by a factor whose middle values are spread."""
    spread = tree.nodes.new("ShaderNodeMapRange")
    spread.inputs["From Min"].default_value, spread.inputs["From Max"].default_value = 0.35, 0.65
    mix = tree.nodes.new("ShaderNodeMixRGB")
    mix.inputs["Color1"].default_value, mix.inputs["Color2"].default_value = (*first, 1), (*second, 1)
    tree.links.new(factor, spread.inputs["Value"])
    tree.links.new(spread.outputs["Result"], mix.inputs["Fac"])
    return mix.outputs["Color"]


def paint(material: bpy.types.Material, colour: Colour) -> None:
    """Gives a plain material another colour of the same brightness; pictures are left as they are."""
    if not material or not material.use_nodes:
        return
    for shader in [node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED"]:
        base = shader.inputs["Base Color"]
        if not base.links:
            grey = float(np.mean(base.default_value[:3]))
            base.default_value = (*(2 * grey * np.array(colour)).clip(0, 1), 1)


def make_opaque(material: bpy.types.Material) -> bool:
    """Sets opacity to 1 (half-transparent surfaces give stippled depth); True if it was invisible instead.

    A picture of the opacity, as leaves have, is cut at one half.
    """
    if not material.use_nodes:
        return False
    tree = material.node_tree
    for shader in [node for node in tree.nodes if node.type == "BSDF_PRINCIPLED"]:
        alpha = shader.inputs["Alpha"]
        shader.inputs["Transmission Weight"].default_value = 0.0
        for link in list(shader.inputs["Transmission Weight"].links):
            tree.links.remove(link)
        if alpha.links:
            cut = tree.nodes.new("ShaderNodeMath")
            cut.operation = "GREATER_THAN"
            cut.inputs[1].default_value = 0.5
            tree.links.new(alpha.links[0].from_socket, cut.inputs[0])
            tree.links.new(cut.outputs[0], alpha)
        elif alpha.default_value < INVISIBLE:
            return True
        else:
            alpha.default_value = 1.0
    return False


def remove_faces(mesh: bpy.types.Mesh, slots: set[int]) -> None:
    """Removes the faces of some material slots, unless that would leave none."""
    import bmesh

    work = bmesh.new()
    work.from_mesh(mesh)
    faces = [face for face in work.faces if face.material_index in slots]
    if len(faces) < len(work.faces):
        bmesh.ops.delete(work, geom=faces, context="FACES")
        work.to_mesh(mesh)
    work.free()
