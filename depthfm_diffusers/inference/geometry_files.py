"""What `depthfm predict --save` writes beside depth maps: metres, normals, meshes, points and stereo pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..export.exr import check_exr_packages, save_exr
from ..export.images import metric_depth_scale, normals_picture, save_image, save_metric_depth
from ..export.meshes import check_mesh_packages, obj_files, save_glb, save_points
from ..export.stereo import StereoSettings, anaglyph, side_by_side, stereo_views
from ..export.surfaces import Surface, SurfaceSettings, depth_surface
from ..focal_length import DEFAULT_FOV_X_DEG
from ..geometry import edge_aware_normals, intrinsics_from_fov
from ..utils.choices import SAVED_KINDS
from ..utils.files import save_array
from . import metric_files
from .metric_files import ImageMetres, MetricSettings

# Metres of the nearest and the farthest point, where nothing is known of them.
ASSUMED_RANGE = (1.0, 10.0)
NEEDED: dict[str, Callable[[], None]] = {
    "mesh": check_mesh_packages,
    "obj": check_mesh_packages,
    "points": check_mesh_packages,
    "exr": check_exr_packages,
}
ENDINGS: dict[str, tuple[str, ...]] = {
    "metres": metric_files.ENDINGS,
    "normals": ("_normals.npy", "_normals.png"),
    "mesh": ("_mesh.glb",),
    "obj": ("_mesh.obj", "_mesh.mtl", "_mesh.png"),
    "points": ("_points.ply",),
    "exr": ("_depth.exr",),
    "stereo": ("_side_by_side.png", "_anaglyph.png"),
}
_AXES = "metres, x right, y up, the camera at the origin looking along -z"
VALUES = metric_files.VALUES | {
    "_normals.npy": (
        "float32, height x width x 3: unit normals facing the camera, x right, y down, z forward (OpenCV); 0 where "
        "there is none."
    ),
    "_normals.png": "8-bit RGB: the normals as (1 + n) / 2, x right, y up, z towards the camera (OpenGL).",
    "_mesh.glb": f"glTF 2.0, binary: triangles with the image as texture; {_AXES}.",
    "_mesh.obj": f"OBJ: the same triangles; {_AXES}. `_mesh.mtl` is its material.",
    "_mesh.mtl": "The material of the OBJ file.",
    "_mesh.png": "The texture of the OBJ file.",
    "_points.ply": f"PLY, binary: points with the image's colours; {_AXES}.",
    "_depth.exr": (
        "OpenEXR, 32-bit float: Z, metres along the optical axis; N.X, N.Y, N.Z, unit normals, x right, y up, z "
        "towards the camera."
    ),
    "_side_by_side.png": "8-bit sRGB: the view of the left eye, and beside it that of the right.",
    "_anaglyph.png": "8-bit sRGB: both views over each other, for red-cyan glasses (red left).",
}


@dataclass(frozen=True)
class GeometrySettings:
    """Which files are written for each image, and how metres are got.

    Attributes:
        kinds: Some of `SAVED_KINDS`.
        depth_range: Metres of the nearest and of the farthest point of each image; log depth is mapped onto it
            linearly. `None`: `ASSUMED_RANGE`.
        surface: What is left out of meshes and points.
        stereo: How far the two views of stereo pictures differ.

    Raises:
        ValueError: If a value is out of its range.
    """

    kinds: tuple[str, ...] = ("depth",)
    depth_range: tuple[float, float] | None = None
    surface: SurfaceSettings = field(default_factory=SurfaceSettings)
    stereo: StereoSettings = field(default_factory=StereoSettings)

    def __post_init__(self) -> None:
        """Checks the values."""
        unknown = [kind for kind in self.kinds if kind not in SAVED_KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"`kinds` must be some of {', '.join(SAVED_KINDS)}, got {list(self.kinds)}.")
        if self.depth_range is not None:
            near, far = self.depth_range
            if not 0 < near < far < math.inf:
                raise ValueError(f"`depth_range` must be metres with 0 < near < far, got {near} and {far}.")

    @property
    def geometry_kinds(self) -> tuple[str, ...]:
        """The kinds that need depth in metres and a camera."""
        return tuple(kind for kind in self.kinds if kind != "depth")

    def describe(self) -> dict[str, Any]:
        """Describes the settings for `metadata.json`; empty if depth maps alone are written."""
        return {"geometry": asdict(self)} if self.geometry_kinds else {}

    def check_packages(self) -> None:
        """Checks that the packages for all files are installed.

        Raises:
            ImportError: If one is not, with the command that installs it.
        """
        for kind in self.kinds:
            if kind in NEEDED:
                NEEDED[kind]()

    def assumptions(self, metric: MetricSettings) -> list[str]:
        """Returns what is assumed for want of better knowledge: one sentence each, for the user.

        Args:
            metric: What is known of the images.
        """
        if not self.geometry_kinds:
            return []
        near, far = ASSUMED_RANGE
        found = []
        if self.depth_range is None and not metric.anchors and metric.anchors_file is None:
            found.append(
                f"depth in metres is not known: the nearest point of each image is assumed {near:g} m away and the "
                f"farthest {far:g} m; --depth-range NEAR,FAR or --anchor X,Y,METRES says otherwise"
            )
        if metric.focal_length is None:
            found.append(
                f"the camera is not known: a horizontal field of view of {DEFAULT_FOV_X_DEG:g} degrees is assumed for "
                "images whose EXIF data do not say it; --focal-length PIXELS says otherwise"
            )
        return found


DEPTH_ONLY = GeometrySettings()


class ImageGeometry:
    """The geometry of one image and the files that show it; each part is computed when it is first needed.

    Args:
        metres: H×W, float32, depth along the optical axis.
        intrinsics: 3×3, the camera of the upright image.
        image: Returns the upright image, H×W×3, uint8, sRGB.
        settings: What to write.
        source: Where the metres come from, for `metadata.json`.
    """

    def __init__(
        self,
        metres: NDArray[np.float32],
        intrinsics: NDArray[np.float64],
        image: Callable[[], NDArray[np.uint8]],
        settings: GeometrySettings,
        source: Mapping[str, Any],
    ) -> None:
        self.metres, self.intrinsics = metres, intrinsics
        self._read_image, self._settings, self._source = image, settings, source

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """The upright image, H×W×3."""
        return self._read_image()

    @cached_property
    def normals(self) -> NDArray[np.float32]:
        """Unit normals, H×W×3, OpenCV camera axes."""
        depth = torch.from_numpy(self.metres)[None, None]
        return edge_aware_normals(depth, torch.from_numpy(self.intrinsics))[0].permute(1, 2, 0).numpy()

    @cached_property
    def surface(self) -> Surface:
        """Points and triangles."""
        return depth_surface(self.metres, self.intrinsics, settings=self._settings.surface)

    @cached_property
    def views(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The views of the left and the right eye."""
        return stereo_views(self.image, self.metres, self._settings.stereo)

    def describe(self) -> dict[str, Any]:
        """Describes the image's metres and camera for its entry in `metadata.json`."""
        entry: dict[str, Any] = {"metres": self._source, "intrinsics": self.intrinsics.tolist()}
        if "metres" in self._settings.kinds:
            entry["metres_png_scale"] = metric_depth_scale(self.metres)
        return entry

    def writers(self, name: str) -> Mapping[str, Callable[[Path], object]]:
        """Returns what writes each file of the kinds asked for, by the file's name.

        Args:
            name: What the names of the image's files begin with.
        """
        saving: dict[str, Callable[[Path], object]] = {
            "_metres.npy": lambda path: save_array(path, self.metres),
            "_metres.png": lambda path: save_metric_depth(path, self.metres),
            "_normals.npy": lambda path: save_array(path, self.normals),
            "_normals.png": lambda path: save_image(path, normals_picture(self.normals)),
            "_mesh.glb": lambda path: save_glb(path, self.surface, self.image),
            "_points.ply": lambda path: save_points(path, self.surface, self.image),
            "_depth.exr": lambda path: save_exr(path, self.metres, self.normals, self._comment),
            "_side_by_side.png": lambda path: save_image(path, side_by_side(*self.views)),
            "_anaglyph.png": lambda path: save_image(path, anaglyph(*self.views)),
        }
        if "obj" in self._settings.kinds:
            files = obj_files(self.surface, self.image, f"{name}_mesh")
            for suffix, content in files.items():
                saving[f"_mesh{suffix}"] = partial(_write_bytes, content=content)
        endings = [ending for kind in self._settings.geometry_kinds for ending in ENDINGS[kind]]
        return {name + ending: saving[ending] for ending in endings}

    @property
    def _comment(self) -> str:
        return f"Z: metres along the optical axis; {self._source['source']}"


def image_geometry(
    log_depth: NDArray[np.float32],
    known: ImageMetres,
    image: Callable[[], NDArray[np.uint8]],
    settings: GeometrySettings,
) -> ImageGeometry:
    """Brings a prediction to metres: those that are known, or else a range.

    Args:
        log_depth: H×W, the network's log depth.
        known: The image's camera, and its metres if they are known.
        image: Returns the upright image, H×W×3, uint8, sRGB.
        settings: What to write, and the range.
    """
    intrinsics = intrinsics_from_fov(known.fov_x_deg, *log_depth.shape).double().numpy()
    if known.metres is not None:
        return ImageGeometry(known.metres, intrinsics, image, settings, known.describe()["metres"])
    near, far = settings.depth_range or ASSUMED_RANGE
    kind = "assumed" if settings.depth_range is None else "given"
    source = {"source": f"{kind} range", "near": near, "far": far}
    return ImageGeometry(depth_in_range(log_depth, near, far), intrinsics, image, settings, source)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def depth_in_range(log_depth: NDArray[np.float32], near: float, far: float) -> NDArray[np.float32]:
    """Maps log depth linearly onto a range of depth.

    Args:
        log_depth: H×W, finite.
        near: Metres of the nearest point.
        far: Metres of the farthest point.

    Returns:
        H×W, metres; `near` everywhere if the map is constant.
    """
    y = log_depth.astype(np.float64)
    low, high = y.min(), y.max()
    share = (y - low) / (high - low) if high > low else np.zeros_like(y)
    return (near * (far / near) ** share).astype(np.float32)
