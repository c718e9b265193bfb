"""Write video files (PyAV)."""

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np

from vlm_jax.errors import MissingPackageError

try:
    import av
except ImportError as error:
    raise MissingPackageError("writing video needs PyAV: pip install 'vlm_jax[video]'") from error

# Ticks per second of files with given frame times: exact for 24, 25, 30, 50, 60 and 30000/1001 frames per second.
TICKS = 90_000

# Containers that can store a rotation.
ROTATABLE = (".mp4", ".mov", ".mkv", ".webm")


def write_video(
    path: str | Path,
    frames: np.ndarray | Iterable[np.ndarray],
    fps: int | Fraction,
    *,
    lossless: bool = False,
    rotation: int = 0,
    times: Sequence[Fraction] | None = None,
    gop: int | None = None,
) -> None:
    """Write RGB frames as a video file.

    The ending of `path` chooses the container and the codec: H.264 in .mp4, .mkv, .mov, .avi and .ts, VP9 in .webm. The
    file appears under its name only when it is complete.

    Args:
      path: File to write; an existing file is replaced.
      frames: One frame or more, uint8 `[T, H, W, 3]` or an iterable of `[H, W, 3]`.
      fps: Frames per second.
      lossless: If true, RGB is stored exactly; else colours have half the resolution (yuv420p), which needs even sides.
      rotation: Angle by which a player turns the frames counter-clockwise, degrees: 0, 90, 180 or 270.
      times: Time of each frame, increasing, seconds, for a variable frame rate; None for k / fps.
      gop: Number of frames from one key frame to the next (H.264); None for the encoder's choice.

    Raises:
      ValueError: If frames, sizes, times or the ending cannot be used.
    """
    path = Path(path)
    if rotation not in (0, 90, 180, 270):
        raise ValueError(f"{path}: rotation is {rotation}, expected 0, 90, 180 or 270")
    if rotation and path.suffix.lower() not in ROTATABLE:
        raise ValueError(f"{path}: rotation is {rotation}, but only {', '.join(ROTATABLE)} can store it")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: no frames to write")
    height, width = _checked(path, first, None).shape[:2]
    if not lossless and (height % 2 or width % 2):
        raise ValueError(f"{path}: frames are {width} x {height}, expected even sides (or lossless=True)")

    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        with _container(path, partial) as container:
            stream = _stream(container, path, fps, lossless, gop, times is not None)
            stream.width, stream.height = width, height
            stream.codec_context.time_base = Fraction(1, TICKS) if times is not None else 1 / Fraction(fps)
            if rotation:
                stream.set_display_rotation(rotation)
            for index, array in enumerate(chain([first], frames)):
                frame = av.VideoFrame.from_ndarray(_checked(path, array, first.shape), format="rgb24")
                frame.time_base = stream.codec_context.time_base
                frame.pts, frame.duration = (index, 1) if times is None else _ticks(path, times, index, fps)
                container.mux(stream.encode(frame))
            if times is not None and len(times) != index + 1:
                raise ValueError(f"{path}: {index + 1} frames but {len(times)} times")
            container.mux(stream.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _container(path: Path, partial: Path) -> av.container.OutputContainer:
    try:
        return av.open(str(partial), "w")
    except (av.error.FFmpegError, ValueError) as error:
        raise ValueError(f"{path}: cannot write such a file: {error}") from error


def _stream(
    container: av.container.OutputContainer,
    path: Path,
    fps: int | Fraction,
    lossless: bool,
    gop: int | None,
    variable_rate: bool,
) -> av.VideoStream:
    options = {} if gop is None else {"g": str(gop), "sc_threshold": "0"}
    if variable_rate:
        options["bf"] = "0"  # with B-frames an .mp4 file would state a wrong length
    if path.suffix.lower() == ".webm":
        codec, pix_fmt = "libvpx-vp9", "gbrp" if lossless else "yuv420p"
        options |= {"cpu-used": "8", "deadline": "realtime"} | ({"lossless": "1"} if lossless else {})
    elif lossless:
        codec, pix_fmt = "libx264rgb", "bgr24"
        options |= {"qp": "0", "preset": "veryfast"}
    else:
        codec, pix_fmt = "libx264", "yuv420p"
    stream = container.add_stream(codec, rate=Fraction(fps), options=options)
    stream.pix_fmt = pix_fmt
    return stream


def _checked(path: Path, frame: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    fits = frame.ndim == 3 and frame.shape[2] == 3 if shape is None else frame.shape == shape
    if not fits or frame.dtype != np.uint8:
        expected = "[H, W, 3]" if shape is None else list(shape)
        raise ValueError(f"{path}: a frame is {frame.dtype} {list(frame.shape)}, expected uint8 {expected}")
    return np.ascontiguousarray(frame)


def _ticks(path: Path, times: Sequence[Fraction], index: int, fps: int | Fraction) -> tuple[int, int]:
    """Return start and duration of a frame, in ticks; the last frame lasts 1 / fps."""
    if index >= len(times):
        raise ValueError(f"{path}: more frames than the {len(times)} times")
    start = Fraction(times[index])
    end = Fraction(times[index + 1]) if index + 1 < len(times) else start + 1 / Fraction(fps)
    if round(end * TICKS) <= round(start * TICKS):
        raise ValueError(f"{path}: times[{index + 1}] is {float(end)} after {float(start)}, expected them to increase")
    return round(start * TICKS), round(end * TICKS) - round(start * TICKS)
