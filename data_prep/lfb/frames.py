"""Records of keyframes: the frames around a second, from folders of extracted frames or from video files."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from vlm_jax.data.images import encode_jpeg
from vlm_jax.data.records import Record, Skip
from vlm_jax.errors import DataError
from vlm_jax.systems.lfb.annotations import Sampling, name_of
from vlm_jax.systems.lfb.augment import resized_size
from vlm_jax.systems.lfb.boxes import ENDINGS
from vlm_jax.video import decode
from vlm_jax.video.resize import resize


@dataclasses.dataclass(frozen=True)
class Storage:
    """Settings of the frames of records.

    Attributes:
      sampling: Rule by which clips take their frames; its jitter is 0 where only evaluation reads them.
      start_second: Second of a video's first frame.
      end_second: Second at which the frames end, None for the end of the film.
      video_start: Second at which a video file begins.
      short_side: Length to which longer shorter sides are scaled, pixels; 0 keeps the frames' size.
      quality: Quality of the JPEGs of frames that are encoded here.
      frame_name: Name of a frame's file in the folder of its video, a format of its number and `video`.
    """

    sampling: Sampling
    start_second: int = 900
    end_second: int | None = 1800
    video_start: int = 0
    short_side: int = 0
    quality: int = 95
    frame_name: str = "img_{:05d}.jpg"

    @property
    def length(self) -> int | None:
        """Return the number of frames of a video, None if the film decides."""
        return None if self.end_second is None else self.sampling.fps * (self.end_second - self.start_second)

    def numbers(self, second: int, length: int) -> list[int]:
        """Return the numbers of all frames that a record of this second has."""
        return self.sampling.possible_numbers(second, self.start_second, length)

    def last_second(self, length: int) -> int:
        """Return the last whole second that a film of `length` frames shows."""
        return self.start_second + (length - 1) // self.sampling.fps

    def encode(self, frame: np.ndarray) -> bytes:
        """Encode a frame, uint8 `[H, W, 3]`, scaled to the short side."""
        size = frame.shape[:2]
        if 0 < self.short_side < min(size):
            frame = resize(frame[None], *resized_size(*size, self.short_side))[0]
        return encode_jpeg(frame, self.quality)


def find_video(videos: Path, video: str) -> Path | None:
    """Return the file of a video, None if there is none."""
    return next((path for ending in ENDINGS if (path := videos / f"{video}{ending}").is_file()), None)


def count_frames(folder: Path) -> int:
    """Return the number of JPEGs in a folder; 0 if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.name.endswith(".jpg") for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return 0


def folder_records(items: Sequence[tuple[str, int]], *, frames: Path, storage: Storage) -> Iterator[Record | Skip]:
    """Yield the records of keyframes whose frames were extracted; the bytes of the JPEGs are kept."""
    count = functools.lru_cache(maxsize=2)(count_frames)
    for group, (video, second) in enumerate(items):
        name = name_of((video, second))
        length = storage.length or count(frames / video)
        if not (frames / video).is_dir() or not length:
            yield Skip(name, "no folder with frames", str(frames / video), files=(f"frames/{video}",))
            continue
        if storage.length is None and second > storage.last_second(length):
            yield Skip(name, "second after the end of the film", f"{length} frames", files=(f"frames/{video}",))
            continue
        numbers = storage.numbers(second, length)
        files = [f"{video}/{storage.frame_name.format(number, video=video)}" for number in numbers]
        try:
            data = [_read_frame(frames / file, storage) for file in files]
            yield Record(_example(video, second, numbers, data), group)
        except FileNotFoundError as error:
            file = Path(error.filename).name
            detail = f"{error.filename}; the folder has {count(frames / video)} frames"
            yield Skip(name, "frame is missing", detail, files=(f"frames/{video}/{file}",))
        except (DataError, tf.errors.OpError, OSError) as error:
            yield Skip(name, "frame cannot be decoded", str(error).splitlines()[0], files=_sources("frames", files))


def _sources(source: str, files: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{source}/{file}" for file in files)


def _read_frame(path: Path, storage: Storage) -> bytes:
    """Return the content of a frame's file; if it is larger than the short side, scaled and encoded again.

    Raises:
      DataError: for a file that is no JPEG.
    """
    data = path.read_bytes()
    try:
        size = tf.io.extract_jpeg_shape(data).numpy()[:2]
        if not 0 < storage.short_side < min(size):
            return data
        return storage.encode(tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy())
    except tf.errors.InvalidArgumentError:
        raise DataError(f"{path}: {len(data)} bytes that are no JPEG") from None


def _example(video: str, second: int, numbers: Sequence[int], frames: Sequence[bytes]) -> Mapping[str, object]:
    """Return the features of a record.

    Raises:
      DataError: for frames that are no JPEGs or differ in size.
    """
    try:
        sizes = {tuple(tf.io.extract_jpeg_shape(frame).numpy()[:2].tolist()) for frame in frames}
    except tf.errors.InvalidArgumentError:
        raise DataError(f"{name_of((video, second))}: a frame is no JPEG") from None
    if len(sizes) > 1:
        raise DataError(f"{name_of((video, second))}: frames of {len(sizes)} sizes, such as {sorted(sizes)[:2]}")
    ((height, width),) = sizes
    return {
        "video": video,
        "second": second,
        "height": height,
        "width": width,
        "frame_numbers": np.array(numbers, np.int32),
        "frames": list(frames),
    }


def film_records(items: Sequence[tuple[str, int]], *, videos: Path, storage: Storage) -> Iterator[Record | Skip]:
    """Yield the records of keyframes of video files; every film is decoded once, and every frame encoded once."""
    group = 0
    for video, keys in itertools.groupby(items, lambda item: item[0]):
        seconds = sorted(second for _, second in keys)
        for record in _film(video, seconds, videos, storage):
            if isinstance(record, Skip):
                yield record
            else:
                yield Record(record, group)
            group += 1


def _film(video: str, seconds: Sequence[int], videos: Path, storage: Storage) -> Iterator[Mapping[str, object] | Skip]:
    path = find_video(videos, video)
    if path is None:
        files = _sources("videos", [f"{video}{ending}" for ending in ENDINGS])
        yield from (
            Skip(name_of((video, second)), "video is missing", str(videos / video), files=files) for second in seconds
        )
        return
    pending = [(second, storage.numbers(second, storage.length or 1 << 40)) for second in seconds]
    wanted = {number for _, numbers in pending for number in numbers}
    kept: dict[int, bytes] = {}
    number, frame, fault = 0, None, None

    def made(second: int, numbers: Sequence[int]) -> Mapping[str, object]:
        return _example(video, second, numbers, [kept[number] for number in numbers])

    try:
        for number, frame in _numbered_frames(path, min(wanted), storage):
            if number in wanted:
                kept[number] = storage.encode(frame)
            while pending and number >= pending[0][1][-1]:
                yield made(*pending.pop(0))
                for old in [old for old in kept if not pending or old < pending[0][1][0]]:
                    del kept[old]
            if not pending:
                return
    except decode.VideoError as error:
        fault = error
    files = (f"videos/{path.name}",)
    for second, numbers in pending:
        name = name_of((video, second))
        if fault is not None:
            yield Skip(name, f"video is {fault.reason}", str(fault), files=files)
        elif storage.length is not None or frame is None or second > storage.last_second(number):
            yield Skip(name, "second after the end of the film", f"{path}: {number} frames", files=files)
        else:
            kept.setdefault(number, storage.encode(frame))
            yield made(second, sorted({min(later, number) for later in numbers}))


def _numbered_frames(path: Path, first: int, storage: Storage) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the frames of a film from number `first` on, or a little earlier, with their numbers.

    Decoding begins at a whole second at least one second before the first frame, so that a frame does not depend on
    where decoding began.
    """
    fps, begin = storage.sampling.fps, storage.start_second - storage.video_start
    seek = max(0, begin + (first - 1) // fps - 1)
    frames = decode.stream_frames(path, start=seek, fps=fps)
    for number, frame in enumerate(frames, start=(seek - begin) * fps + 1):
        if number > 0:
            yield number, frame


def film_length(path: Path, storage: Storage) -> int:
    """Return the number of frames of a film from its start second on, by the duration that its file states.

    Raises:
      VideoError: for a file that is no video.
    """
    seconds = decode.probe(path).duration - (storage.start_second - storage.video_start)
    return max(0, int(seconds * storage.sampling.fps))
