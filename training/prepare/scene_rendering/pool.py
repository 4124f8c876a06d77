"""Renders scenes in processes of their own.

Blender is not safe in threads, and a crash of it must not take along who writes the shards.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from shard_writer import FrameRejected, Sample

from .camera_paths import camera_to_world, draw_path
from .catalogue import Catalogue
from .layout import draw_scene
from .pictures import add_grain, check_frame, encode_frame, shake, tone_map

if TYPE_CHECKING:
    from .render import Renderer


@dataclass(frozen=True)
class RenderedFrame:
    """One view of one scene: what goes into a shard, unless it is rejected."""

    seed: int
    scene: int
    view: int

    @property
    def key(self) -> str:
        """Name in the shard."""
        return f"{self.scene_name}_{self.view:02d}"

    @property
    def scene_name(self) -> str:
        """Name of the scene, other for other seeds: splits are by it."""
        return f"render_{self.seed}_{self.scene:06d}"


@dataclass(frozen=True)
class RenderSettings:
    """All that a scene depends on beside its number.

    Attributes:
        catalogue: The furniture.
        seed: Of all random draws.
        views: Frames of a scene.
        indoor_share: Share of rooms among the scenes.
        size: Width and height in pixels.
        samples: Samples per pixel.
        threads: CPU threads of one process, 0 for all.
        textures: Pictures for floors, walls and grounds.
        environments: Environment maps.
        photo_share: Share of scenes that are composed as photographs are.
        moving: Whether the views of a scene are the frames of one camera path, in order.
    """

    catalogue: Catalogue
    seed: int
    views: int
    indoor_share: float
    size: tuple[int, int]
    samples: int
    threads: int
    textures: tuple[Path, ...] = ()
    environments: tuple[Path, ...] = ()
    photo_share: float = 0.0
    moving: bool = False


# A view's files, or the reason and detail of why there are none.
ViewResult = Sample | tuple[str, str]


class ScenePool:
    """Processes that render, and the results that are still to be fetched.

    A scene's views are rendered together when the first of them is asked for, a few scenes ahead of that.

    Args:
        settings: What to render.
        frames: All frames in the order in which they will be asked for.
        num_workers: Number of processes.
    """

    def __init__(self, settings: RenderSettings, frames: Sequence[RenderedFrame], num_workers: int = 1) -> None:
        self._settings = settings
        self._num_workers = num_workers
        self._order = list(dict.fromkeys(frame.scene for frame in frames))
        self._position = {scene: position for position, scene in enumerate(self._order)}
        self._futures: dict[int, Future[list[ViewResult]]] = {}
        self._fetched: dict[int, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> ScenePool:
        self._folder = tempfile.TemporaryDirectory(prefix="scenes-")
        # Not forked: Blender and its threads would be copied half.
        self._processes = ProcessPoolExecutor(
            self._num_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(self._settings, Path(self._folder.name)),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._processes.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def encode(self, frame: RenderedFrame) -> Sample:
        """Makes the files of a frame; each frame can be fetched once.

        Raises:
            FrameRejected: If there is no such view, or it does not pass the checks.
            ChildProcessError: If a process died.
        """
        with self._lock:
            position = self._position[frame.scene]
            for scene in self._order[position : position + self._num_workers]:
                if scene not in self._fetched:
                    self._fetched[scene] = 0
                    self._futures[scene] = self._submit(scene)
            future = self._futures[frame.scene]
            self._fetched[frame.scene] += 1
            if self._fetched[frame.scene] == self._settings.views:
                del self._futures[frame.scene]
        try:
            result = future.result()[frame.view]
        except BrokenProcessPool as error:
            raise ChildProcessError(_DIED.format(frame.scene_name)) from error
        if isinstance(result, Sample):
            return result
        raise FrameRejected(*result)

    def _submit(self, scene: int) -> Future[list[ViewResult]]:
        try:
            return self._processes.submit(_render_scene, scene)
        except BrokenProcessPool as error:
            raise ChildProcessError(_DIED.format(scene)) from error


_DIED = "A rendering process died at scene {}, perhaps for want of memory (see above, and try fewer --num_workers)."

# What a process renders with; set once when it starts.
_process: dict[str, Any] = {}


def _start(settings: RenderSettings, folder: Path) -> None:
    """Prepares a process."""
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    from .render import Renderer

    # Blender's own clean-up at exit can hang beside threads, and there is nothing to save. (Results are sent by then.)
    atexit.register(os._exit, 0)
    _process["settings"] = settings
    _process["renderer"] = Renderer(
        Path(tempfile.mkdtemp(dir=folder)),
        settings.size,
        settings.samples,
        settings.threads,
        settings.textures,
        settings.environments,
    )


def _end_with_parent(folder: Path) -> None:
    """Ends this process when the one that started it was killed: the pool would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


def _render_scene(number: int) -> list[ViewResult]:
    """Renders all views of a scene."""
    return render_views(_process["renderer"], _process["settings"], number)


def render_views(renderer: Renderer, settings: RenderSettings, number: int) -> list[ViewResult]:
    """Draws, builds and renders a scene.

    Args:
        renderer: Does it.
        settings: What is rendered.
        number: Number of the scene.

    Returns:
        One result a view.
    """
    scene = draw_scene(
        settings.catalogue,
        settings.seed,
        number,
        1 if settings.moving else settings.views,
        settings.indoor_share,
        len(settings.textures),
        len(settings.environments),
        settings.photo_share,
        settings.size[0] / settings.size[1],
    )
    missing = ("no_camera", f"the scene has {len(scene.shots)} places for cameras that see enough")
    results: list[ViewResult] = [missing] * settings.views
    if settings.moving and scene.shots:
        # Of its own generator: the scene is that of the same seed without a path.
        path = draw_path(np.random.default_rng([settings.seed, number, 1]), scene, scene.shots[0], settings.views)
        if not path:
            return [("no_path", "the camera has no room to move in")] * settings.views
        scene.shots[:] = path
    if not scene.shots:
        return results
    models = sorted({model.id for model in renderer.build(scene)})
    for view, shot in enumerate(scene.shots):
        radiance, depth = renderer.render(shot.camera, shot.focus, shot.aperture)
        noise = np.random.default_rng([settings.seed, number, view])
        image = add_grain(tone_map(shake(radiance, shot.shake), shot.exposure, shot.highlights), shot.grain, noise)
        frame = RenderedFrame(settings.seed, number, view)
        metadata = {
            "fov_x_deg": float(np.degrees(shot.camera.fov_x)),
            "indoor": scene.indoor,
            "scene": frame.scene_name,
            "models": models,
        }
        if settings.moving:
            metadata["camera_to_world"] = camera_to_world(shot.camera).tolist()
        try:
            check_frame(image, depth, shot.camera, shot.closest)
        except FrameRejected as rejected:
            results[view] = (rejected.reason, rejected.detail)
            if settings.moving:  # no clip has holes
                return [results[view]] * settings.views
        else:
            counts = {"indoor_frames" if scene.indoor else "outdoor_frames": 1}
            results[view] = Sample(frame.scene_name, encode_frame(image, depth, metadata), counts)
    return results
