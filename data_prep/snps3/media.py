"""Records of parts of videos and of images, from files, folders of frames, or an LMDB."""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data_prep.key_values import is_lmdb, read_value
from vlm_jax.data.images import encode_jpeg
from vlm_jax.data.records import Record, Skip
from vlm_jax.errors import DataError
from vlm_jax.systems.snps3.sampling import frame_indices, part_of_video
from vlm_jax.systems.snps3.transforms import long_side_size
from vlm_jax.video import decode
from vlm_jax.video.scale import scale

VIDEO_ENDINGS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg")
FRAME_ENDINGS = (".jpg", ".jpeg", ".png")
MEDIA = "media"
"""Name of the folder or LMDB of media in `Skip.files`."""
FORMATS = ("frames", "video")
"""How videos are stored: as JPEGs, or as the bytes of their files. Images are kept as they are."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """Settings of records.

    Attributes:
      format: One of `FORMATS`.
      num_frames: Number of evenly sampled frames that are stored of a video or of a part of it; 0 stores all of them.
      max_side: Length to which longer longer sides of stored frames are scaled, pixels; 0 keeps the frames' size.
      quality: Quality of JPEGs that are encoded here.
      frame_rate: Frames per second of folders of frames, 0 if unknown; only parts of such videos need it.
    """

    format: str = "frames"
    num_frames: int = 0
    max_side: int = 0
    quality: int = 95
    frame_rate: float = 0.0

    def chosen(self, first: int, count: int) -> np.ndarray:
        """Return the frames to store of a part of a video, int64."""
        return first + (frame_indices(count, self.num_frames) if 0 < self.num_frames < count else np.arange(count))

    def encode(self, frame: np.ndarray) -> bytes:
        """Return the JPEG of a frame, uint8 `[H, W, 3]`, scaled to the longer side."""
        size = frame.shape[:2]
        if 0 < self.max_side < max(size):
            frame = scale(frame[None], *long_side_size(*size, self.max_side))[0]
        return encode_jpeg(frame, self.quality)


class Wanted(NamedTuple):
    """Part of a video, or an image, that becomes one record.

    Attributes:
      number: Number of the part in its list.
      clip_name: Name in the annotations.
      media: 'video' or 'image'.
      start: Start of the part, seconds; None for all of the video.
      end: Its end.
    """

    number: int
    clip_name: str
    media: str
    start: float | None
    end: float | None

    @property
    def name(self) -> str:
        """Return the name in messages."""
        return self.clip_name if self.start is None else f"{self.clip_name}, {self.start:g} to {self.end:g} s"


class _MediaError(Exception):
    """Reason and detail of a medium that cannot be used."""


def part_records(items: Sequence[Sequence[Any]], *, media: Path, storage: Storage) -> Iterator[Record | Skip]:
    """Yield the records of parts; those of one video follow one another, and it is decoded at most twice.

    Args:
      items: Fields of `Wanted` of every part.
      media: Folder of files and of folders of frames, or an LMDB.
      storage: Settings of the records.
    """
    group = 0
    for (clip_name, kind), found in itertools.groupby((Wanted(*item) for item in items), lambda part: part[1:3]):
        parts, files = list(found), _files(media, clip_name)
        try:
            examples = list(_examples(find_medium(media, clip_name, kind), parts, storage))
        except (_MediaError, decode.VideoError, OSError, ValueError, tf.errors.OpError) as error:
            reason, detail = "cannot be read", str(error).partition("\n")[0][:200]
            if isinstance(error, _MediaError):
                reason, detail = error.args
            elif isinstance(error, decode.VideoError):
                reason = f"video is {error.reason}"
            elif isinstance(error, tf.errors.OpError):
                reason = "image cannot be decoded"
            yield from (Skip(part.name, reason, detail, files=files) for part in parts)
            continue
        for part, made in examples:
            if isinstance(made, _MediaError):
                yield Skip(part.name, *made.args, files=files)
            else:
                yield Record({"part": part.number, "clip_name": clip_name, **made}, group)
                group += 1


def find_medium(media: Path, clip_name: str, kind: str) -> Path | list[Path] | bytes:
    """Return the file of a video or image, the files of its frames in order, or its content from an LMDB.

    Raises:
      _MediaError: If there is none.
    """
    if is_lmdb(media):
        key = os.path.splitext(clip_name)[0]
        value = read_value(media, key)
        if value is None:
            raise _MediaError(f"{kind} is missing", f"no key {key!r} in {media}")
        return value
    parts = Path(clip_name).parts
    if not parts or Path(clip_name).is_absolute() or ".." in parts:
        raise _MediaError("name of no file in the folder", clip_name)
    for file in _candidates(clip_name):
        if (media / file).is_file():
            return media / file
        if kind == "video" and (media / file).is_dir():
            return frame_files(media / file)
    raise _MediaError(f"{kind} is missing", str(media / clip_name))


def frame_files(folder: Path) -> list[Path]:
    """Return the files of a folder's frames, ordered by the number at the end of their names.

    Raises:
      _MediaError: If there is none.
    """

    def place(path: Path) -> tuple[int, str]:
        digits = re.search(r"(\d+)$", path.stem)
        return int(digits[1]) if digits else -1, path.name

    found = sorted((path for path in folder.iterdir() if path.suffix.lower() in FRAME_ENDINGS), key=place)
    if not found:
        raise _MediaError("folder without frames", str(folder))
    return found


def _candidates(clip_name: str) -> list[str]:
    """Return the paths that a video or image may have: its name, one with an ending, or the folder of its frames."""
    stem = os.path.splitext(clip_name)[0]
    named = [clip_name] if os.path.splitext(clip_name)[1] else [f"{clip_name}{ending}" for ending in VIDEO_ENDINGS]
    return list(dict.fromkeys([*named, stem]))


def _files(media: Path, clip_name: str) -> tuple[str, ...]:
    if is_lmdb(media):
        return (f"{MEDIA}/data.mdb" if media.is_dir() else MEDIA,)
    return tuple(f"{MEDIA}/{file}" for file in _candidates(clip_name))


Example = Mapping[str, Any]


def _examples(
    content: Path | list[Path] | bytes, parts: Sequence[Wanted], storage: Storage
) -> Iterator[tuple[Wanted, Example | _MediaError]]:
    """Return the features of the record of every part, or why there are none."""
    if parts[0].media == "image":
        data = content if isinstance(content, bytes) else _read_image(content)
        return ((part, _image_example(data, storage)) for part in parts)
    if isinstance(content, list):
        return _folder_examples(content, parts, storage)
    return _video_examples(content, parts, storage)


def _read_image(content: Path | list[Path]) -> bytes:
    if isinstance(content, list):
        raise _MediaError("image is a folder", str(content[0].parent))
    return content.read_bytes()


def picture_size(data: bytes) -> tuple[int, int]:
    """Return height and width of a JPEG or PNG, after decoding it.

    Raises:
      tf.errors.OpError: If it is none.
    """
    height, width = tf.io.decode_jpeg(data, 3).shape[:2]
    return height, width


def _image_example(data: bytes, storage: Storage) -> Example:
    if storage.format == "video":
        raise _MediaError("image in a data set of whole videos", "prepare images with --format frames")
    return _frames_example([data], storage)


def _frames_example(frames: Sequence[bytes], storage: Storage) -> Example:
    """Return the features of encoded frames; those with too long sides are encoded again."""
    sizes = [picture_size(frame) for frame in frames]
    if len(set(sizes)) > 1:
        raise _MediaError("frames differ in size", f"{len(set(sizes))} sizes, such as {sorted(set(sizes))[:2]}")
    if 0 < storage.max_side < max(sizes[0]):
        frames = [
            storage.encode(tf.io.decode_jpeg(frame, 3, dct_method="INTEGER_ACCURATE").numpy()) for frame in frames
        ]
    return _packed(frames)


def _packed(frames: Sequence[bytes]) -> Example:
    height, width = picture_size(frames[0])
    return {"height": height, "width": width, "first": 0, "count": len(frames), "frames": list(frames)}


def _folder_examples(
    files: Sequence[Path], parts: Sequence[Wanted], storage: Storage
) -> Iterator[tuple[Wanted, Example | _MediaError]]:
    if storage.format == "video":
        raise _MediaError("folder of frames in a data set of whole videos", "prepare it with --format frames")
    for part in parts:
        try:
            first, count = _range(part, len(files), storage.frame_rate)
            frames = [files[number].read_bytes() for number in storage.chosen(first, count)]
            yield part, _frames_example(frames, storage)
        except _MediaError as error:
            yield part, error


def _range(part: Wanted, length: int, frame_rate: float) -> tuple[int, int]:
    """Return the first frame of a part and its number of frames within the video.

    Raises:
      _MediaError: If it has none, or the frame rate is unknown.
    """
    if part.start is None or part.end is None:
        return 0, length
    if frame_rate <= 0:
        raise _MediaError("unknown frame rate", "parts need one; for folders of frames, give --frame_rate")
    first, count = part_of_video(part.start, part.end, frame_rate)
    if first >= length:
        raise _MediaError("part begins after the end", f"{length} frames at {frame_rate:g} per second")
    return first, min(count, length - first)


def _video_examples(
    content: Path | bytes, parts: Sequence[Wanted], storage: Storage
) -> Iterator[tuple[Wanted, Example | _MediaError]]:
    rate, length = float(decode.probe(content).frame_rate), decode.count_frames(content)
    ranges: dict[Wanted, tuple[int, int] | _MediaError] = {}
    for part in parts:
        try:
            ranges[part] = _range(part, length, rate)
        except _MediaError as error:
            ranges[part] = error
    found = {part: place for part, place in ranges.items() if not isinstance(place, _MediaError)}
    chosen = {part: storage.chosen(*place) for part, place in found.items()}
    encoded: dict[int, bytes] = {}
    if storage.format == "frames" and chosen:
        numbers = np.unique(np.concatenate(list(chosen.values()))).tolist()
        frames = decode.frames_at(content, numbers)
        encoded = {number: storage.encode(frame) for number, frame in zip(numbers, frames, strict=True)}
    for part, place in ranges.items():
        if isinstance(place, _MediaError):
            yield part, place
        elif storage.format == "frames":
            yield part, _packed([encoded[number] for number in chosen[part].tolist()])
        else:
            yield part, _video_example(content, *place)


def _video_example(content: Path | bytes, first: int, count: int) -> Example:
    info = decode.probe(content)
    data = content if isinstance(content, bytes) else content.read_bytes()
    return {"height": info.height, "width": info.width, "first": first, "count": count, "video": data}


def check_media(media: Path) -> None:
    """Check that the folder or LMDB of media exists.

    Raises:
      DataError: If it does not.
    """
    if not media.is_dir() and not (media.is_file() and is_lmdb(media)):
        raise DataError(f"--media: {media}: no such folder or LMDB")
