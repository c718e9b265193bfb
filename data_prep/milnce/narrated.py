"""Training records of MIL-NCE, from narrated videos and their caption files."""

import collections
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from data_prep.tables import cell_seconds, cell_text, read_rows
from vlm_jax.data import images
from vlm_jax.data.records import Record, Skip
from vlm_jax.errors import DataError
from vlm_jax.systems.milnce import captions
from vlm_jax.systems.milnce.data import clip_weights
from vlm_jax.video import decode, segment

ORIGINAL = "original"
"""Format of records that hold whole, unchanged video files."""


@dataclasses.dataclass(frozen=True)
class Captions:
    """A video's narration in time order.

    Attributes:
      start: Start of each caption, seconds, `[N]`.
      end: End of each caption, seconds, `[N]`.
      text: Text of each caption.
    """

    start: np.ndarray
    end: np.ndarray
    text: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Segments:
    """Settings by which videos are cut into training records.

    Attributes:
      fps: Frames per second that are kept.
      short_side: Shorter side of the stored frames, pixels, even; smaller frames are not enlarged.
      smallest_side: Least shorter side of a video, pixels, even.
      enlarge: If true, videos below `smallest_side` are enlarged to it, otherwise skipped.
      seconds: Number of whole seconds per record at which clips may begin; 0 keeps a video whole.
      clip_seconds: Length of the longest clip that is read, seconds; consecutive records overlap by it.
      min_time: Least length of a caption, seconds; shorter ones are widened, as in training.
      max_candidates: Largest K that the records support.
      min_seconds: Least length of a video, seconds; shorter ones are skipped.
      quality: JPEG quality of the frames.
      epoch: Unit that an epoch visits once: `videos`, as in the reference, or `segments`, for few videos.
      format: Form of the stored frames: `jpeg`, one file per frame; `mp4`, one video file per record; or `original`,
        the whole video as it is, neither resampled nor scaled.
      crf: Constant rate factor of the mp4 files, 0 to 51; lower values give better and larger files.

    Raises:
      DataError: for values out of range, or settings that contradict each other.
    """

    fps: int
    short_side: int
    smallest_side: int
    enlarge: bool
    seconds: int
    clip_seconds: float
    min_time: float
    max_candidates: int
    min_seconds: float
    quality: int
    epoch: str
    format: str = "jpeg"
    crf: int = segment.DEFAULT_CRF

    def __post_init__(self) -> None:
        sides = self.smallest_side, self.short_side
        if not 2 <= sides[0] <= sides[1] or sides[0] % 2 or sides[1] % 2:
            raise DataError(f"--smallest_side, --short_side: expected even numbers, the first no more, found {sides}")
        for name in ("fps", "clip_seconds", "max_candidates", "quality"):
            if getattr(self, name) <= 0:
                raise DataError(f"--{name}: expected more than 0, found {getattr(self, name)}")
        if self.format == ORIGINAL and (self.seconds or self.enlarge or self.epoch != "videos"):
            raise DataError(
                "--format original: keeps videos whole and at their size; expected --segment_seconds 0, --epoch "
                "videos, no --enlarge"
            )
        if not 0 <= self.crf <= 51:
            raise DataError(f"--crf: expected 0 to 51, found {self.crf}")

    @property
    def clip_frames(self) -> int:
        """Number of frames of the longest clip."""
        return math.ceil(self.clip_seconds * self.fps)


def read_captions(path: Path | Iterable[str], name: str = "") -> Captions:
    """Read a caption file with the columns `start`, `end` (seconds) and `text`. Other columns are ignored.

    Args:
      path: Path of the file, or its lines.
      name: Name of the file in error messages, by default its path.

    Raises:
      DataError: for a file that cannot be read, or a cell that is not a time.
    """
    rows = read_rows(path, ("start", "end", "text"), name)
    times: dict[str, list[float]] = {"start": [], "end": []}
    for number, row in enumerate(rows, start=2):
        for key, values in times.items():
            values.append(cell_seconds(row[key], f"{name or path}: line {number}, column {key!r}"))
    return Captions(np.array(times["start"]), np.array(times["end"]), tuple(cell_text(row["text"]) for row in rows))


def training_records(
    videos: Sequence[str], *, video_root: Path, caption_root: Path, segments: Segments
) -> Iterator[Record | Skip]:
    """Yield a record for every segment of every video, or the reason why a video gives none."""
    group = -1
    for video in videos:
        try:
            captions_name = f"{video.split('.')[0]}.csv"
            captions_path = caption_root / captions_name
            if not os.path.isfile(captions_path):
                yield Skip(video, "no captions", f"{captions_path}: no such file", files=(f"captions/{captions_name}",))
                continue
            narration = read_captions(captions_path)
            if not narration.text:
                raise _Skipped("no captions", f"{captions_path}: no rows")
            made = list(_cut(video_root / video, video, narration, segments))
        except _Skipped as skip:
            yield Skip(video, *skip.args)
        except DataError as error:
            yield Skip(video, "bad captions", str(error), files=(f"captions/{captions_name}",))
        except decode.VideoError as error:
            yield Skip(video, error.reason, str(error), files=(f"videos/{video}",))
        else:
            group += 1
            for number, (example, weight) in enumerate(made):
                group += segments.epoch == "segments" and number > 0
                yield Record(example, group, weight)


class _Skipped(Exception):
    """Reason and detail of a video that gives no record."""


def _cut(path: Path, video: str, narration: Captions, segments: Segments) -> Iterator[tuple[dict[str, object], float]]:
    """Yield a video's segments and their weights.

    Frames are decoded once, up to the last one that a clip can show.
    """
    info = decode.probe(path)
    side = min(info.width, info.height)
    if side < segments.smallest_side and not segments.enlarge:
        raise _Skipped("too small", f"{path}: {info.width}x{info.height}, needs {segments.smallest_side}")
    if info.duration < segments.min_seconds:
        raise _Skipped("too short", f"{path}: {info.duration:.2f} s, needs {segments.min_seconds:g} s")
    if segments.format == ORIGINAL:
        yield _whole(path, video, narration, segments, (info.height, info.width))
        return
    enlarge = side < segments.smallest_side
    scale = decode.short_side(segments.smallest_side if enlarge else segments.short_side, enlarge=enlarge)
    last_seek = _last_seek(narration, segments)
    span = segments.seconds or last_seek + 1
    store = _Store(segments)
    first, frames = 0, []
    with closing(decode.stream_frames(path, fps=segments.fps, filters=scale)) as stream:
        for frame in store.encode(stream):
            frames.append(frame)
            seeks = first, min(first + span - 1, last_seek)
            # With at least one second of frames, the frames left over begin where the next segment begins.
            if len(frames) == (seeks[1] - first) * segments.fps + max(segments.clip_frames, segments.fps):
                yield from _segment(video, narration, segments, seeks, store, frames)
                if seeks[1] == last_seek:
                    return
                first, frames = first + span, frames[span * segments.fps :]
    if not frames and first == 0:
        raise _Skipped("no frames", f"{path}: nothing was decoded")
    # Clips that begin after the end are black; they belong to the last segment.
    yield from _segment(video, narration, segments, (first, max(first, last_seek)), store, frames)


def _last_seek(narration: Captions, segments: Segments) -> int:
    """Return the last second at which a clip may begin."""
    ranges = [
        captions.seek_range(captions.clip_interval(start, end, segments.min_time), segments.clip_seconds)
        for start, end in zip(narration.start, narration.end, strict=True)
    ]
    return max(last for _, last in ranges)


def _whole(
    path: Path, video: str, narration: Captions, segments: Segments, size: tuple[int, int]
) -> tuple[dict[str, object], float]:
    """Return the record of a whole video and its weight.

    All that clips can show is decoded once, so that a damaged video is noticed here.
    """
    last_seek = _last_seek(narration, segments)
    with closing(decode.stream_frames(path, seconds=last_seek + segments.clip_seconds + 1, fps=1)) as frames:
        collections.deque(frames, maxlen=0)
    weights = clip_weights(narration.start, narration.end, (0, last_seek), segments.min_time, segments.clip_seconds)
    example = _example(video, narration, (0, last_seek), size, (0, len(weights)), len(weights))
    return {**example, "video": path.read_bytes()}, float(weights.sum())


def _example(
    video: str,
    narration: Captions,
    seeks: tuple[int, int],
    size: tuple[int, int],
    kept: tuple[int, int],
    total: int,
) -> dict[str, object]:
    """Return a record without its frames.

    Args:
      video: Path of the video, whose part before the first dot is its name.
      narration: All captions of the video.
      seeks: First and last second at which clips may begin.
      size: Height and width of the stored frames, pixels.
      kept: Range of the captions that the record stores.
      total: Number of captions of the video.
    """
    begin, end = kept
    return {
        "video_id": video.split(".")[0],
        "start": seeks[0],
        "seek_first": seeks[0],
        "seek_last": seeks[1],
        "height": size[0],
        "width": size[1],
        "caption_first": begin,
        "caption_total": total,
        "caption_start": narration.start[begin:end],
        "caption_end": narration.end[begin:end],
        "caption_text": list(narration.text[begin:end]),
    }


def _segment(
    video: str,
    narration: Captions,
    segments: Segments,
    seeks: tuple[int, int],
    store: "_Store",
    frames: list[bytes],
) -> Iterator[tuple[dict[str, object], float]]:
    weights = clip_weights(narration.start, narration.end, seeks, segments.min_time, segments.clip_seconds)
    owned = np.flatnonzero(weights)
    if not len(owned):
        return
    begin = max(0, int(owned[0]) - segments.max_candidates + 1)
    end = min(len(weights), int(owned[-1]) + segments.max_candidates)
    example = _example(video, narration, seeks, store.size, (begin, end), len(weights))
    yield {**example, **store.feature(frames)}, float(weights.sum())


class _Store:
    """Encoder of a video's frames. Each frame is encoded once, even if several records hold it."""

    def __init__(self, segments: Segments) -> None:
        self.segments, self.size = segments, (0, 0)
        self.encoder = segment.SegmentEncoder(segments.fps, segments.crf) if segments.format == "mp4" else None

    def encode(self, frames: Iterable[np.ndarray]) -> Iterator[bytes]:
        """Yield one encoded piece per frame."""

        def measured() -> Iterator[np.ndarray]:
            for frame in frames:
                self.size = frame.shape[:2]
                yield frame

        if self.encoder:
            yield from self.encoder.packets(measured())
        else:
            yield from (images.encode_jpeg(frame, self.segments.quality) for frame in measured())

    def feature(self, pieces: Sequence[bytes]) -> dict[str, object]:
        """Return the frames of a record as a feature, from consecutive pieces that begin at a whole second."""
        return {"mp4": self.encoder.mp4(pieces)} if self.encoder else {"frames": list(pieces)}
