"""Segments of video as mp4 files in memory, written once and read from any whole second on.

Every second begins with a key frame, and no frame depends on a later one. A clip that begins at a whole second is
therefore decoded without extra frames.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from vlm_jax.errors import MissingPackageError, UserError

try:
    import av
    from av.video.reformatter import Interpolation, VideoReformatter
except ImportError as error:
    raise MissingPackageError("mp4 segments need PyAV: pip install 'vlm_jax[video]'") from error

DEFAULT_CRF = 23

# `fastdecode` halves the decoding time for a tenth more bytes. `zerolatency` looks no frames ahead and stores frames in
# the order in which they are shown. One thread gives the same bytes on every machine.
ENCODER = {"preset": "fast", "tune": "fastdecode,zerolatency", "sc_threshold": "0", "threads": "1"}


class SegmentError(UserError):
    """Error of bytes that are not a segment, or of a damaged segment."""


class SegmentEncoder:
    """Encoder of a video into one packet per frame; any run of packets from a whole second on can be a segment.

    Args:
      fps: Frames per second.
      crf: Constant rate factor of H.264: 0 is lossless, 23 usual, 51 worst.
    """

    def __init__(self, fps: int, crf: int = DEFAULT_CRF) -> None:
        self.fps = fps
        self.container = av.open(io.BytesIO(), "w", format="mp4")
        self.stream = self.container.add_stream(
            "libx264", rate=fps, options={**ENCODER, "crf": str(crf), "g": str(fps)}
        )
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, fps)

    def packets(self, frames: Iterable[np.ndarray]) -> Iterator[bytes]:
        """Encode RGB frames, uint8 `[H, W, 3]` with even sides, and yield their packets; only once per encoder."""
        for number, array in enumerate(frames):
            if not number:
                self.stream.height, self.stream.width = array.shape[:2]
                self.container.start_encoding()  # now the stream has the codec data that readers need
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, self.fps)
            yield from map(bytes, self.stream.encode(frame))
        if self.stream.codec_context.is_open:
            yield from map(bytes, self.stream.encode(None))

    def mp4(self, packets: Sequence[bytes]) -> bytes:
        """Return the mp4 file of packets, the first of which must begin a second; no bytes for no packets."""
        if not packets:
            return b""
        file = io.BytesIO()
        with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream_from_template(self.stream)
            for number, data in enumerate(packets):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, self.fps)
                packet.pts = packet.dts = number
                packet.duration, packet.is_keyframe = 1, number % self.fps == 0
                container.mux(packet)
        return file.getvalue()


def segment_length(data: bytes) -> int:
    """Return the number of frames of a segment; raise SegmentError if it cannot be read."""
    if not data:
        return 0
    with _opened(data) as container:
        return container.streams.video[0].frames


def decode_segment(
    data: bytes, first: int, count: int, *, window: tuple[int, int, int] | None = None, size: int | None = None
) -> np.ndarray:
    """Return frames `first` to `first + count - 1` of a segment: uint8 `[count, H, W, 3]`, RGB, black after its end.

    Args:
      data: File from `SegmentEncoder.mp4`.
      first: Number of the first frame.
      count: Number of frames.
      window: Top, left and side of the square to keep, pixels; None for whole frames.
      size: Side to which the window is scaled (bicubic), pixels; None keeps its size. If given, the window is rounded
        down to even pixels, as FFmpeg crops such video, since colours have half the resolution.

    Raises:
      SegmentError: If the bytes are damaged or frames do not hold the window; for no bytes, if neither window nor size
        is given.
    """
    top, left, height, width = (0, 0, 0, 0) if window is None else (*window, window[2])
    frames: list[av.VideoFrame] = []
    if data:
        with _opened(data) as container:
            stream = container.streams.video[0]
            if window is None:
                height, width = stream.height, stream.width
            if top + height > stream.height or left + width > stream.width:
                raise SegmentError(f"frames of {stream.width}x{stream.height} do not hold the window {window}")
            frames = _frames(container, stream, first, count)
    shape = (size, size) if size else (height, width)
    if not all(shape):
        raise SegmentError("no frames, and no size for black ones")
    video = np.zeros((count, *shape, 3), np.uint8)
    if frames and size:
        _scale(frames, top, left, height, width, video)
    elif frames:
        video[: len(frames)] = _cropped(frames, top, left, height, width)
    return video


def _opened(data: bytes) -> av.container.InputContainer:
    try:
        container = av.open(io.BytesIO(data), format="mp4")
    except (av.error.FFmpegError, ValueError) as error:
        raise SegmentError(f"no mp4 file ({getattr(error, 'strerror', error)})") from error
    (stream,) = container.streams.video if len(container.streams) == len(container.streams.video) == 1 else (None,)
    context = stream and stream.codec_context
    if (
        not context
        or (context.name, context.pix_fmt) != ("h264", "yuv420p")
        or not (stream.frames and stream.average_rate and stream.height and stream.width)
    ):
        container.close()
        raise SegmentError("no mp4 file with frames in H.264")
    return container


def _frames(
    container: av.container.InputContainer, stream: av.VideoStream, first: int, count: int
) -> list[av.VideoFrame]:
    """Return the existing frames of a range, decoded from the key frame before it."""
    last = min(first + count, stream.frames) - 1
    if last < first:
        return []
    context = stream.codec_context
    context.thread_count, context.options = 1, {"err_detect": "explode"}
    tick = 1 / (stream.average_rate * stream.time_base)
    kept = []
    try:
        container.seek(int(first * tick), stream=stream)
        for frame in container.decode(stream):
            number = round(frame.pts / tick)
            if number >= first:
                if frame.is_corrupt or number != first + len(kept):
                    break
                kept.append(frame)
            if number >= last:
                break
    except av.error.FFmpegError as error:
        raise SegmentError(f"damaged frame ({error.strerror})") from error
    if len(kept) != last - first + 1:
        raise SegmentError(f"damaged: frame {first + len(kept)} of {stream.frames} is missing")
    return kept


def _cropped(frames: Sequence[av.VideoFrame], top: int, left: int, height: int, width: int) -> np.ndarray:
    """Return a window of frames in RGB: uint8 `[T, H, W, 3]`."""
    # Only the window, widened to even pixels, is converted, and all frames in one call, stacked on top of one another.
    begin, above = left - left % 2, top - top % 2
    wide, high = (left + width + 1) // 2 * 2 - begin, (top + height + 1) // 2 * 2 - above
    planes = zip(*(_window(frame, above, begin, high, wide) for frame in frames), strict=True)
    tall = av.VideoFrame.from_ndarray(_packed([np.concatenate(plane) for plane in planes]), format="yuv420p")
    video = VideoReformatter().reformat(tall, format="rgb24", threads=1).to_ndarray()
    video = video.reshape(len(frames), high, wide, 3)
    return video[:, top - above :, left - begin :][:, :height, :width]


def _scale(frames: Sequence[av.VideoFrame], top: int, left: int, height: int, width: int, video: np.ndarray) -> None:
    """Scale a window of T frames to S x S, in RGB, into the first T frames of `video`, uint8 `[N, S, S, 3]`."""
    top, left, height, width = (number - number % 2 for number in (top, left, height, width))
    size, reformatter = video.shape[1], VideoReformatter()
    for number, frame in enumerate(frames):
        cut = av.VideoFrame.from_ndarray(_packed(_window(frame, top, left, height, width)), format="yuv420p")
        scaled = reformatter.reformat(cut, size, size, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        video[number] = scaled.to_ndarray()


def _window(frame: av.VideoFrame, top: int, left: int, height: int, width: int) -> list[np.ndarray]:
    """Return the three planes of a window of a yuv420p frame; all numbers must be even."""
    window = []
    for plane, half in zip(frame.planes, (0, 1, 1), strict=True):
        pixels = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        window.append(pixels[top >> half : (top + height) >> half, left >> half : (left + width) >> half])
    return window


def _packed(planes: Sequence[np.ndarray]) -> np.ndarray:
    """Return the three planes of a yuv420p picture as the one array that PyAV expects."""
    width = planes[0].shape[1]
    return np.concatenate([np.ascontiguousarray(plane).reshape(-1) for plane in planes]).reshape(-1, width)
