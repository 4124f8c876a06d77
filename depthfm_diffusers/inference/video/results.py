"""Predicting clips into a result folder: the coloured video, and frames as PNG, OpenEXR or arrays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike, NDArray

from ...export.exr import check_exr_packages, save_exr
from ...export.images import colorize_depth, depth_to_uint16, save_image
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ...utils.choices import CLIP_FRAME_FORMATS
from ...utils.files import file_sha256
from ..prediction import PredictionSettings
from ..prediction_files import PredictionFolder
from .clips import Clip, ImageSequence
from .encoding import VideoWriter
from .steady import SteadyPredictor, depth_in_range, to_size
from .store import FrameStore, StoredFrame

# Formats in which each frame is a file NAME_depth_NUMBER.FORMAT, with what writes a depth map in [0, 1].
FRAME_WRITERS: dict[str, Callable[[Path, NDArray[np.float32]], object]] = {
    "png": lambda path, depth: save_image(path, depth_to_uint16(depth)),
    "exr": lambda path, depth: save_exr(path, depth, comments=EXR_COMMENT),
}
EXR_COMMENT = "Z: 0 is the nearest and 1 the farthest of the shot, not metres"
WORK_PREFIX = ".depthfm-video-"


@dataclass(frozen=True)
class ClipResult:
    """What was done for a clip.

    Attributes:
        name: NAME in the names of its files.
        frames: Number of its frames.
        message: What the user should know beside; empty if nothing.
    """

    name: str
    frames: int
    message: str = ""


class ClipPredictor:
    """Predicts clips into a folder.

    Args:
        pipe: The pipeline.
        settings: How each frame is predicted.
        folder: Where the results go.
        run: Describes the run, for `metadata.json`. A clip goes on where an earlier run of the same description was
            stopped.
        frame_formats: In which formats the frames are written beside the video, some of `CLIP_FRAME_FORMATS`.

    Raises:
        ImportError: If a package for these formats is not installed.
    """

    def __init__(
        self,
        pipe: DepthFMPipeline,
        settings: PredictionSettings,
        folder: PredictionFolder,
        run: Mapping[str, Any],
        frame_formats: Sequence[str] = (),
    ) -> None:
        self._pipe, self._settings, self._folder, self._run = pipe, settings, folder, run
        self._formats = [kind for kind in CLIP_FRAME_FORMATS if kind in frame_formats]
        if "exr" in self._formats:
            check_exr_packages()

    def predict(self, clip: Clip) -> Iterator[int | ClipResult]:
        """Predicts a clip and writes its files, unless that was done before.

        Args:
            clip: The clip.

        Yields:
            The number of frames that are predicted, each time it grows; at last the result.

        Raises:
            ClipError: If the clip cannot be used. The frames before the fault are kept for the next run.
            OSError: If it cannot be read, or a file cannot be written.
            RuntimeError: If the network's output is not finite.
        """
        files = clip.files if isinstance(clip, ImageSequence) else [clip.path]
        digest = file_sha256(clip.path) if clip.path.is_file() else _joint_digest(files)
        fps = {"target_fps": clip.limits.target_fps, "sequence_fps": None if clip.path.is_file() else clip.rate}
        described: dict[str, Any] = {name: value and str(value) for name, value in fps.items()}
        work = self._work_folder(clip.path, {**self._run, "video": described}, digest)
        described |= {"max_frames": clip.limits.max_frames, "frame_formats": self._formats}
        number = self._folder.begin_run({**self._run, "video": described}, files, resume=True)
        earlier = self._folder.last_entry(clip.path, number)
        if earlier is not None and earlier.get("input_sha256") == digest and self._is_whole(earlier):
            yield ClipResult(earlier["name"], earlier["frames"], "has been predicted before with the same settings")
            return
        store = FrameStore(work)
        count = yield from self._predict_frames(clip, store)
        entry = _ClipFiles(clip, store, count, self._folder, self._formats).add(digest)
        store.remove()
        yield ClipResult(entry["name"], count, entry["sound"] if entry["sound"] not in (None, "copied") else "")

    def _predict_frames(self, clip: Clip, store: FrameStore) -> Generator[int, None, int]:
        """Predicts the frames that are not in the store; returns how many frames the clip has."""
        most = clip.limits.max_frames
        done = store.num_frames if most is None else min(store.num_frames, most)
        yield done
        if done == most:
            return done
        predictor = SteadyPredictor(self._pipe, self._settings, store.state)
        try:
            for frame in clip.frames(done):
                store.add(predictor.predict(frame.image), frame.pts)
                done += 1
                yield done
        finally:
            store.flush()
        return done

    def _work_folder(self, source: Path, run: Mapping[str, Any], digest: str) -> Path:
        """Returns the folder of a clip's frames; those of other settings are removed."""
        described = json.dumps([{**run, "started": None}, digest], sort_keys=True)
        of_clip = WORK_PREFIX + hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
        path = self._folder.path / f"{of_clip}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"
        for other in self._folder.path.glob(f"{of_clip}-*"):
            if other != path and other.is_dir() and not other.is_symlink():
                shutil.rmtree(other)
        return path

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        return isinstance(entry.get("frames"), int) and all(
            (self._folder.path / file).is_file() for file in entry["files"]
        )


class _ClipFiles:
    """The files of one clip: made of the stored frames, each map by itself."""

    def __init__(
        self, clip: Clip, store: FrameStore, count: int, folder: PredictionFolder, formats: Sequence[str]
    ) -> None:
        self._clip, self._store, self._count = clip, store, count
        self._folder, self._formats = folder, formats
        self._shots = store.shots(count)

    def add(self, digest: str) -> dict[str, Any]:
        """Writes the files and records them; returns the entry of the record."""
        clip = self._clip
        kinds = [kind for kind in self._formats if kind in FRAME_WRITERS]
        numbered = {kind: [f"_depth_{number:06d}.{kind}" for number in range(self._count)] for kind in kinds}
        endings = ["_color.mp4", *(["_log_depth.npz"] if "npz" in self._formats else []), *chain(*numbered.values())]
        earlier = self._folder.last_entry(clip.path)
        name = self._folder.choose_name(clip.path, endings, earlier)
        entry: dict[str, Any] = {
            "name": name,
            "input": str(clip.path),
            "input_sha256": digest,
            "height": clip.size[0],
            "width": clip.size[1],
            "frames": self._count,
            "shots": [asdict(shot) for shot in self._shots],
            "sound": None,
            "files": [name + ending for ending in endings],
        }
        write: dict[str, Callable[[Path], object]] = {
            f"{name}_color.mp4": lambda path: entry.update(sound=self._save_video(path))
        }
        if "npz" in self._formats:
            write[f"{name}_log_depth.npz"] = self._save_npz
        for kind in kinds:
            depths = (depth for _, depth in self._depths())
            for ending in numbered[kind]:
                write[name + ending] = partial(_save_next, FRAME_WRITERS[kind], depths)
        self._folder.add(entry, write)
        # Frames of a longer result, which would be taken for the end of this one.
        for file in {*(earlier["files"] if earlier else ())} - {*entry["files"]}:
            (self._folder.path / file).unlink(missing_ok=True)
        return entry

    def _log_depths(self) -> Iterator[tuple[StoredFrame, NDArray[np.float32]]]:
        for stored in self._store.frames(self._count):
            yield stored, to_size(stored.log_depth, self._clip.size)

    def _depths(self) -> Iterator[tuple[StoredFrame, NDArray[np.float32]]]:
        for stored, log_depth in self._log_depths():
            shot = self._shots[stored.shot]
            yield stored, depth_in_range(log_depth, shot.low, shot.high)

    def _save_video(self, path: Path) -> str | None:
        """Writes the coloured video; returns what became of the sound."""
        clip, sound = self._clip, self._clip.path if self._clip.has_audio else None
        rate = min(clip.rate, clip.limits.target_fps or clip.rate)
        with VideoWriter(path, clip.size, clip.time_base, rate, clip.pixel_aspect, sound) as writer:
            for stored, depth in self._depths():
                writer.add(colorize_depth(depth, self._folder.colormap), stored.pts)
        if sound is None:
            return None
        return writer.sound_problem or "copied"

    def _save_npz(self, path: Path) -> None:
        """Writes the log depth of all frames, and their times and shots, without holding them in memory."""
        times, shots = [], []
        with zipfile.ZipFile(path, "w") as archive:
            with _member(archive, "log_depth.npy") as file:
                _write_header(file, (self._count, *self._clip.size), np.float32)
                for stored, log_depth in self._log_depths():
                    file.write(np.ascontiguousarray(log_depth).tobytes())
                    times.append(float(stored.pts * self._clip.time_base))
                    shots.append(stored.shot)
            for name, values in (("time", np.array(times)), ("shot", np.array(shots, np.int64))):
                with _member(archive, f"{name}.npy") as file:
                    _write_header(file, values.shape, values.dtype)
                    file.write(values.tobytes())


def _save_next(
    save: Callable[[Path, NDArray[np.float32]], object], depths: Iterator[NDArray[np.float32]], path: Path
) -> None:
    """Writes the next depth map: frames are written in order."""
    save(path, next(depths))


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Opens a file in a zip file for writing; the time is left at 1980, so that the same arrays are the same bytes."""
    return archive.open(zipfile.ZipInfo(name), "w", force_zip64=True)


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: DTypeLike) -> None:
    header = {"descr": npy_format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(file, header)


def _joint_digest(files: Sequence[Path]) -> str:
    return hashlib.sha256(" ".join(file_sha256(file) for file in files).encode()).hexdigest()
