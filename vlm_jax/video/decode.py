"""Reading of frames from video files with FFmpeg's own filters (PyAV), the same frames as from the `ffmpeg` program.

Filters are strings in FFmpeg's syntax, such as 'crop=224:224,hflip'. The functions at the end return the usual ones.
"""

import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import numpy as np

from vlm_jax.errors import MissingPackageError, UserError

try:
    import av
except ImportError as error:
    raise MissingPackageError("reading video needs PyAV: pip install 'vlm_jax[video]'") from error

File = str | Path | bytes
"""Path of a video, or the content of its file."""
Seconds = float | Fraction
Rate = int | Fraction

MICROSECONDS = 1_000_000
# PyAV 18 rejects metadata that are no text unless told otherwise; 19 has no such option.
OPENING = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}

# Containers whose header states the duration, and the tolerance (seconds) for packets that end earlier.
CONTAINERS_WITH_LENGTH = {"mov", "matroska", "avi"}
TRUNCATION_TOLERANCE = 1.0
# Margins (microseconds) before the start at which decoding begins; the next is tried if the first frame comes too late.
SEEK_MARGINS = (0, 2 * MICROSECONDS, 16 * MICROSECONDS, 128 * MICROSECONDS, math.inf)
# Allowance of the ffmpeg program (microseconds) for frames that are stored later than they are shown.
REORDERING = 3 * MICROSECONDS // 23
# Limits in seconds. A longer gap comes from a damaged time stamp, and the filter `fps` would fill it with frames. The
# same holds for a later frame.
LONGEST_GAP = 3600
LONGEST_VIDEO = 48 * 3600
# Largest array that `read_frames` returns, bytes.
LARGEST_ARRAY = 8 << 30
# Width and height of a frame (pixels) that is large enough for any reasonable filter.
LARGE = 8192


class VideoError(UserError):
    """Video file that cannot be used.

    Attributes:
      path: Name of the video in messages.
      reason: One of 'missing', 'empty', 'unreadable', 'no video stream', 'no frames', 'truncated', 'too small',
        'changing size', 'time jump', 'too long'.
      detail: Further description, or ''.
    """

    def __init__(self, path: File, reason: str, detail: str = "") -> None:
        super().__init__(name_of(path), reason, detail)
        self.path, self.reason, self.detail = self.args

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


def versions() -> str:
    """Return the versions of PyAV and of FFmpeg's decoders, on which the number of frames may depend."""
    return f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def name_of(video: File) -> str:
    """Return the name of a video in messages: its path, or the size of its content."""
    return f"video of {len(video)} bytes" if isinstance(video, bytes) else str(video)


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file, as its header and its first frame state them.

    Attributes:
      path: Name of the video in messages.
      width: Width as shown (after rotation), pixels.
      height: Height as shown (after rotation), pixels.
      duration: Duration in seconds, of the container, else of the video stream; 0 if unknown.
      frame_rate: Average frames per second, 0 if unknown.
      num_frames: Number of frames that the container states, 0 if unknown.
      rotation: Degrees by which a player turns the stored frames counter-clockwise: 0, 90, 180 or 270.
      codec: FFmpeg's name of the codec, such as 'h264'.
    """

    path: str
    width: int
    height: int
    duration: float
    frame_rate: Fraction
    num_frames: int
    rotation: int
    codec: str


def probe(path: File) -> VideoInfo:
    """Read the header and the first frame of a file.

    Raises:
      VideoError: if it is not a video that can be decoded.
    """
    with _opened(path) as stream:
        frame = next(_timed_frames(path, stream, strict=False, start=0), None)
        if frame is None:
            raise VideoError(path, "no frames")
        angle, _ = _rotation(frame)
        width, height = (frame.height, frame.width) if angle in (90, 270) else (frame.width, frame.height)
        stated = stream.container.duration
        return VideoInfo(
            path=name_of(path),
            width=width,
            height=height,
            duration=float((stream.duration or 0) * stream.time_base) if stated is None else stated / MICROSECONDS,
            frame_rate=stream.average_rate or stream.guessed_rate or Fraction(0),
            num_frames=stream.frames,
            rotation=-angle % 360,
            codec=stream.codec_context.name,
        )


def stream_frames(
    path: File,
    *,
    start: Seconds = 0.0,
    seconds: Seconds | None = None,
    fps: Rate | None = None,
    filters: str = "",
    strict: bool = True,
    threads: int = 1,
) -> Iterator[np.ndarray]:
    """Yield the frames of a video, or of a part of it, one by one: uint8 `[H, W, 3]`, RGB.

    They are the frames of `ffmpeg -ss START -t SECONDS -i PATH -filter_complex 'fps=FPS,FILTERS' -pix_fmt rgb24 -f
    rawvideo -`. The seek is exact, and times are counted from it. Frames are first rotated by metadata. The end is cut
    off before `fps` decides on the number of frames. Without `fps`, every source frame comes once (`-fps_mode
    passthrough`). In some files the program's seek loses or damages frames (MPEG transport and program streams, AVI at
    0 s); this function yields the right ones.

    Args:
      path: Path of the video, or the content of its file.
      start: Time to skip, seconds; at or after the end of the video there are no frames.
      seconds: Length of the part to read, seconds; None for all.
      fps: Output frames per second; None for the source's frames.
      filters: FFmpeg filters, a chain without labels.
      strict: If true, a damaged or truncated file raises VideoError when the damage is met; else all frames that can be
        decoded are yielded. A missing end is not noticed in containers without a stated duration (MPEG-TS, fragmented
        MP4).
      threads: Number of decoder threads, 0 for one per core.

    Raises:
      VideoError: if the file cannot be used.
      ValueError: if FFmpeg cannot use `filters`, or `start` or `seconds` is out of range.
    """
    if start < 0 or (seconds is not None and seconds <= 0):
        raise ValueError(f"{path}: start is {start} and seconds {seconds}, expected start >= 0 and seconds > 0")
    timing = []
    if seconds is not None:
        timing.append(("trim", f"duration={_microseconds(seconds)}us"))
    if fps is not None:
        timing.append(("fps", f"fps={Fraction(fps)}"))
    with closing(_decode(path, _microseconds(start), strict, threads)) as decoded:
        for index, frame in enumerate(_filtered(path, decoded, timing, filters)):
            for _ in range(1 + frame.pts if fps is not None and index == 0 else 1):  # it is repeated back to time 0
                yield np.array(frame.to_ndarray())


def read_frames(
    path: File,
    *,
    start: Seconds = 0.0,
    seconds: Seconds | None = None,
    fps: Rate | None = None,
    filters: str = "",
    strict: bool = True,
    threads: int = 1,
) -> np.ndarray:
    """Return the frames that `stream_frames` yields as one array: uint8 `[T, H, W, 3]`, RGB.

    If `start` is after the end of the video, T is 0, and H and W are still right.

    Raises:
      VideoError: if the file cannot be used, or the frames take more than `LARGEST_ARRAY` bytes.
      ValueError: if FFmpeg cannot use `filters`, or `start` or `seconds` is out of range.
    """
    chosen = {"start": start, "seconds": seconds, "fps": fps, "filters": filters}
    frames = []
    with closing(stream_frames(path, **chosen, strict=strict, threads=threads)) as stream:
        for frame in stream:
            frames.append(frame)
            if len(frames) * frame.nbytes > LARGEST_ARRAY:
                raise VideoError(path, "too long", f"more than {len(frames)} frames of {list(frame.shape)} at once")
    return np.stack(frames) if frames else np.zeros((0, *_output_size(path, filters), 3), np.uint8)


def read_clip(
    path: File, *, start: Seconds, num_frames: int, fps: Rate, filters: str = "", strict: bool = True
) -> np.ndarray:
    """Return a clip of fixed length: uint8 `[num_frames, H, W, 3]`, RGB; frames after the end of the video are black.

    0.1 s more than the clip's length is read, so that the last frame does not depend on rounding
    (antoine77340/MIL-NCE_HowTo100M, video_loader.py). Arguments and errors are those of `stream_frames`.
    """
    seconds = num_frames / Fraction(fps) + Fraction(1, 10)
    frames = stream_frames(path, start=start, seconds=seconds, fps=fps, filters=filters, strict=strict)
    with closing(frames):
        kept = list(islice(frames, num_frames))
    size = kept[0].shape if kept else (*_output_size(path, filters), 3)
    return np.stack(kept + [np.zeros(size, np.uint8)] * (num_frames - len(kept)))


def read_clips(
    path: File, starts: Sequence[Seconds], num_frames: int, fps: Rate, filters: str = "", strict: bool = True
) -> np.ndarray:
    """Return clips of one video from N start times: uint8 `[N, num_frames, H, W, 3]`; see `read_clip`."""
    chosen = {"num_frames": num_frames, "fps": fps, "filters": filters, "strict": strict}
    return np.stack([read_clip(path, start=start, **chosen) for start in starts])


def count_frames(path: File, strict: bool = True) -> int:
    """Return the number of frames of a video, all of which are decoded.

    Raises:
      VideoError: if the file cannot be used.
    """
    with closing(_decode(path, 0, strict, threads=1)) as decoded:
        return sum(1 for _ in decoded)


def frames_at(path: File, numbers: Sequence[int], filters: str = "", strict: bool = True) -> Iterator[np.ndarray]:
    """Yield the frames of some numbers, counted from 0: uint8 `[H, W, 3]`, RGB; none after the end of the video.

    The video is decoded from its beginning, because time stamps do not give the number of a frame exactly.

    Args:
      path: Path of the video, or the content of its file.
      numbers: Ascending numbers without repetitions.
      filters: FFmpeg filters that yield one frame per frame.
      strict: As for `stream_frames`, up to the last frame of `numbers`.

    Raises:
      VideoError: if the file cannot be used.
    """
    wanted = frozenset(numbers)
    with closing(_decode(path, 0, strict, threads=1)) as decoded:
        kept = (frame for number, frame in enumerate(islice(decoded, max(wanted) + 1)) if number in wanted)
        for frame in _filtered(path, kept, [], filters):
            yield np.array(frame.to_ndarray())


def _microseconds(seconds: Seconds) -> int:
    """Return whole microseconds, truncated as FFmpeg does when it reads the number as text."""
    exact = seconds if isinstance(seconds, Fraction) else Fraction(Decimal(str(float(seconds))))
    return math.floor(exact * MICROSECONDS)


@contextmanager
def _opened(path: File, threads: int = 1) -> Iterator[av.VideoStream]:
    """Open a file and return a context with its best video stream; the file is closed afterwards.

    Raises:
      VideoError: if the file cannot be read or has no video stream.
    """
    in_memory = isinstance(path, bytes)
    if not in_memory and not os.path.isfile(path):  # also for a name that is too long for a file
        raise VideoError(path, "missing")
    if not (len(path) if in_memory else Path(path).stat().st_size):
        raise VideoError(path, "empty")
    try:
        container = av.open(io.BytesIO(path) if in_memory else f"file:{path}", **OPENING)
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError(path, "unreadable", getattr(error, "strerror", None) or str(error)) from error
    with container:
        flags = av.stream.Disposition
        streams = [stream for stream in container.streams.video if not stream.disposition & flags.attached_pic]
        if not streams:
            raise VideoError(path, "no video stream")
        # The ffmpeg program prefers the default stream, then the one with the most pixels.
        stream = max(streams, key=lambda s: s.width * s.height + 5_000_000 * bool(s.disposition & flags.default))
        if stream.codec_context is None:
            raise VideoError(path, "unreadable", "unknown codec")
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "AUTO"
        yield stream


def _decode(path: File, start: int, strict: bool, threads: int) -> Iterator[av.VideoFrame]:
    """Yield decoded frames from `start` (microseconds) on, in display order, with times counted from `start`."""
    for margin in SEEK_MARGINS:
        with _opened(path, threads) as stream, closing(_timed_frames(path, stream, strict, start)) as frames:
            container, from_beginning = stream.container, start - margin <= 0
            target = start + (container.start_time or 0)
            if not from_beginning:
                by_display_time = container.format.flags & av.format.Flags.seek_to_pts.value
                early = 0 if by_display_time or not stream.codec_context.has_b_frames else REORDERING
                with suppress(av.error.FFmpegError):  # then all is read, and frames before `start` are dropped
                    container.seek(target - margin - early)
            zero = math.floor(Fraction(target, MICROSECONDS) / stream.time_base + Fraction(1, 2))
            if container.format.flags & av.format.Flags.ts_discont.value and stream.start_time is not None:
                zero = max(zero, stream.start_time)  # the program counts times of such files from the stream it reads
            first = next(frames, None)
            if first is None and from_beginning:
                raise VideoError(path, "no frames")
            if first is None and container.duration is not None and start >= container.duration:
                return
            if not from_beginning and (first is None or first.pts > zero):
                continue  # happens in containers without an index (MPEG-TS)
            end = 0
            for frame in chain([first], frames):
                if frame.pts < zero:
                    continue
                if strict and frame.is_corrupt:
                    raise VideoError(path, "unreadable", "damaged frame")
                frame.pts -= zero
                _check_times(path, end, frame)
                end = frame.pts + frame.duration
                yield frame
            return


def _check_times(path: File, end: int, frame: av.VideoFrame) -> None:
    """Check the time of a frame; `end` is the end of the previous frame, in ticks of its time base."""
    before, shown, lasts = (float(ticks * frame.time_base) for ticks in (end, frame.pts, frame.duration))
    if shown - before > LONGEST_GAP or lasts > LONGEST_GAP:
        raise VideoError(path, "time jump", f"a frame at {shown:.0f} s that lasts {lasts:.0f} s, after {before:.0f} s")
    if shown > LONGEST_VIDEO:
        raise VideoError(path, "too long", f"a frame at {shown:.0f} s, the limit is {LONGEST_VIDEO} s")


def _timed_frames(path: File, stream: av.VideoStream, strict: bool, start: int) -> Iterator[av.VideoFrame]:
    """Yield decoded frames from the container's current position on, each with a time and a duration."""
    without_display_times = stream.container.format.name == "avi"
    last_time, last_duration = None, 1
    for packet in _packets(path, stream, strict, start):
        try:
            frames = stream.codec_context.decode(packet)
        except av.error.FFmpegError as error:
            # Right after a seek, the decoder may lack the reference frames of a packet.
            if strict and (last_time is not None or start == 0):
                raise VideoError(path, "unreadable", error.strerror) from error
            continue
        for frame in frames:
            frame.time_base = stream.time_base
            frame.pts = frame.dts if frame.pts is None or without_display_times else frame.pts
            if frame.pts is None:
                frame.pts = 0 if last_time is None else last_time + last_duration
            step = 0 if last_time is None else frame.pts - last_time
            if step > 0 and (frame.duration <= 0 or (frame.duration == 1 and step > 2)):
                frame.duration = step  # FFmpeg sets one tick if it knows no duration
            last_time, last_duration = frame.pts, max(frame.duration, 1)
            yield frame


def _packets(path: File, stream: av.VideoStream, strict: bool, start: int) -> Iterator[av.Packet | None]:
    """Yield the packets of the video stream, then None to flush the decoder.

    Raises:
      VideoError: if `strict` and the file ends too early.
    """
    container, stated = stream.container, None
    if CONTAINERS_WITH_LENGTH & set(container.format.name.split(",")):
        stated = container.duration and container.duration / MICROSECONDS
        if stream.duration is not None:
            stated = float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    # The program does not read the other streams. They are read here if nothing else shows that the file was truncated.
    if stated is None or stream.duration is not None:
        for other in container.streams:
            other.discard = av.stream.Discard.default if other.index == stream.index else av.stream.Discard.all
    reached = -math.inf
    try:
        with closing(container.demux()) as packets:  # PyAV leaks memory if it is left to the garbage collector
            for packet in packets:
                shown = packet.pts if packet.pts is not None else packet.dts
                if shown is not None:
                    reached = max(reached, float((shown + packet.duration) * packet.time_base))
                if packet.stream_index != stream.index or packet.size == 0:
                    continue
                if strict and packet.is_corrupt and stated is not None:
                    raise VideoError(path, "truncated", "its last packet is incomplete")
                yield packet
    except av.error.FFmpegError as error:
        if strict:
            raise VideoError(path, "truncated", error.strerror) from error
    reached = reached if reached >= 0 else start / MICROSECONDS
    if strict and stated is not None and reached + TRUNCATION_TOLERANCE < stated:
        raise VideoError(path, "truncated", f"ends at {reached:.1f} s of {stated:.1f} s")
    yield None


def _output_size(path: File, filters: str) -> tuple[int, int]:
    """Return height and width (pixels) of the frames that `filters` give."""
    with closing(_decode(path, 0, strict=False, threads=1)) as frames:
        for frame in _filtered(path, islice(frames, 1), [], filters):
            return frame.height, frame.width
    raise VideoError(path, "no frames")


def _filtered(
    path: File, frames: Iterable[av.VideoFrame], timing: list[tuple[str, str]], filters: str
) -> Iterator[av.VideoFrame]:
    """Yield RGB frames after rotation and the filters `timing` and `filters`."""
    graph, layout = None, None
    for frame in chain(frames, [None]):
        if frame is None and graph is None:
            return
        if graph is None:
            layout = (frame.width, frame.height, frame.format.name)
            graph = _filter_graph(path, frame, [*_rotation(frame)[1], *timing, *_split_filters(filters)])
        elif frame is not None and layout != (frame.width, frame.height, frame.format.name):
            raise VideoError(path, "changing size", f"{layout}, then {frame.width} x {frame.height}")
        graph.vpush(frame)
        try:
            while True:
                yield graph.vpull()
        except av.error.EOFError:
            return
        except av.error.BlockingIOError:
            continue  # the graph needs another frame


def _filter_graph(path: File, frame: av.VideoFrame, steps: list[tuple[str, str]]) -> av.filter.Graph:
    try:
        return _linked(frame, frame.width, frame.height, steps)
    except (av.error.FFmpegError, ValueError) as error:
        try:
            _linked(frame, LARGE, LARGE, steps)
        except (av.error.FFmpegError, ValueError):
            raise ValueError(f"{path}: FFmpeg cannot use the filters {steps}: {error}") from error
        raise VideoError(path, "too small", f"{frame.width} x {frame.height}") from error


def _linked(frame: av.VideoFrame, width: int, height: int, steps: list[tuple[str, str]]) -> av.filter.Graph:
    """Build a filter graph for frames of this size (pixels) and the other properties of `frame`."""
    graph = av.filter.Graph()
    graph.threads = 1
    colours = f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
    source = f"video_size={width}x{height}:pix_fmt={frame.format.name}:time_base={frame.time_base}:{colours}"
    nodes = [("buffer", source), *steps, ("format", "pix_fmts=rgb24"), ("buffersink", "")]
    graph.link_nodes(*[graph.add(name, arguments or None) for name, arguments in nodes])
    graph.configure()
    return graph


def _rotation(frame: av.VideoFrame) -> tuple[int, list[tuple[str, str]]]:
    """Return the rotation of a frame: degrees clockwise (0, 90, 180, 270), and the filters that the program uses."""
    data = frame.side_data.get("DISPLAYMATRIX")
    matrix = np.frombuffer(bytes(data), np.int32).tolist() if data else [1, 0, 0, 0, 1, 0, 0, 0, 1]
    angle = round(math.degrees(math.atan2(matrix[1], matrix[0])) / 90) * 90 % 360
    if angle in (90, 270):
        turn, mirrored = ("clock", "cclock_flip") if angle == 90 else ("cclock", "clock_flip")
        return angle, [("transpose", mirrored if (matrix[3] > 0) == (angle == 90) else turn)]
    flips = [("hflip", "")] if angle == 180 and matrix[0] < 0 else []
    return angle, flips + ([("vflip", "")] if matrix[4] < 0 else [])


def _split_filters(text: str) -> list[tuple[str, str]]:
    """Return names and arguments of a chain 'name=arguments,name'; quotes and backslashes protect commas."""
    texts = re.findall(r"(?:\\.|'[^']*'|[^,])+", text)
    pairs = [re.sub(r"\\(.)|'([^']*)'", r"\1\2", text).strip().partition("=") for text in texts]
    return [(name, arguments) for name, _, arguments in pairs]


def square_crop(size: int, u: float = 0.5, w: float = 0.5) -> str:
    """Return filters for the largest square, scaled to size x size pixels.

    The square lies at x = (width - side) * u, y = (height - side) * w.
    """
    side = "min(iw\\,ih)"
    return f"crop={side}:{side}:(iw - {side})*{float(u)}:(ih - {side})*{float(w)},scale={size}:{size}"


def crop(size: int, u: float, w: float) -> str:
    """Return the filter for a crop of size x size pixels at x = (width - size) * u, y = (height - size) * w."""
    return f"crop={size}:{size}:(iw - {size})*{float(u)}:(ih - {size})*{float(w)}"


def short_side(side: int, enlarge: bool = False) -> str:
    """Return the filter that scales the shorter side to `side` pixels and keeps the aspect ratio; both sides are even.

    Args:
      side: Length of the shorter side, an even number of pixels.
      enlarge: If true, smaller frames are enlarged; else they keep their size, apart from odd sides.

    Raises:
      ValueError: if `side` is odd or below 2.
    """
    if side < 2 or side % 2:
        raise ValueError(f"side is {side}, expected an even number of pixels")
    short = f"{side}" if enlarge else f"min({side}\\,trunc(min(iw\\,ih)/2)*2)"
    return f"scale=if(gt(iw\\,ih)\\,-2\\,{short}):if(gt(iw\\,ih)\\,{short}\\,-2)"
