"""Trained models on your own video and sentences, without TensorFlow.

model = inference.load("runs/quickstart")
video = model.encode_video("film.mp4", start=12.0)
text = model.encode_text(["a bird sings", "a car drives past"])
print(text @ video)
"""

import collections
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.convert import checkpoint_path
from vlm_jax.errors import ConfigError
from vlm_jax.task import Task, get_task
from vlm_jax.text import word_list
from vlm_jax.train.checkpoint import checkpoint_folder, restore_variables
from vlm_jax.types import Batch, Outputs, Variables

AHEAD = 2
"""Batches of windows that are decoded while another is encoded."""


class Model:
    """A restored checkpoint.

    Attributes:
      config: Of the run that made it.
      variables: Parameters and model state.
    """

    def __init__(self, config: ConfigDict, task: Task, variables: Variables) -> None:
        # On the device once and for all: restored arrays are the host's, and would be copied at every call.
        self.config, self.variables = config, jax.device_put(variables)
        self._encoders: dict[str, Callable[[Variables, Batch], Outputs]] = {
            name: jax.jit(encoder) for name, encoder in task.encoders.items()
        }
        self._vocabulary: dict[str, int] | None = None

    def encode_video(self, video: str | Path | np.ndarray, *, start: float = 0.0) -> np.ndarray:
        """Embeds one clip, or a batch of them.

        Args:
          video: A file, of which the clip that begins at `start` is read (centre square, at the config's rate, black
            beyond the end); or frames, uint8 `[T, H, W, 3]` or `[B, T, H, W, 3]`, RGB.
          start: Seconds into the file.

        Returns:
          `[D]`, or `[B, D]` for a batch.

        Raises:
          VideoError: where the file cannot be read.
          ValueError: for frames of another shape or type.
        """
        return self._video(video, start)["video_embedding"]

    def video_features(self, video: str | Path | np.ndarray, *, start: float = 0.0) -> np.ndarray:
        """The pooled feature before the joint space, `mixed_5c` `[C]` or `[B, C]`; arguments as `encode_video`."""
        return self._video(video, start)["mixed_5c"]

    def extract(
        self,
        path: str | Path,
        *,
        layer: str = "mixed_5c",
        window: int | None = None,
        stride: int | None = None,
        fps: float | None = None,
        size: int | None = None,
        crop: str = "center",
        batch_size: int = 8,
        threads: int = 1,
    ) -> np.ndarray:
        """Features of a whole video, `[N, C]` float32; its length costs no memory but theirs.

        Row i stands for frames i * stride to i * stride + window, counted at `fps` from the video's beginning. Rows
        follow one another until one holds the last frame; frames beyond the video are black.

        Args:
          path: A video file.
          layer: Output of the video encoder, such as 'mixed_5c' or 'video_embedding'.
          window: Frames of a row; the config's clip if not given, as `fps` and `size`.
          stride: Frames from one row to the next; the window if not given.
          fps: Frames per second.
          size: Sides of a frame, pixels.
          crop: 'center', the largest square, or 'none', the whole frame squeezed into one.
          batch_size: Windows encoded at the same time; changes no feature.
          threads: Decoder threads, 0 for one per core.

        Raises:
          VideoError: where the file cannot be used.
          ConfigError: for numbers or a layer that cannot be.
        """
        from vlm_jax.video import decode

        clips = self.config.clips
        window, fps, size = window or clips.num_frames, fps or clips.fps, size or clips.size
        stride = stride or window
        for name, value in {
            "window": window,
            "stride": stride,
            "fps": fps,
            "size": size,
            "batch_size": batch_size,
        }.items():
            if value <= 0:
                raise ConfigError(f"{name}: expected more than 0, found {value}")
        filters = {"center": decode.square_crop(size), "none": f"scale={size}:{size}"}
        if crop not in filters:
            raise ConfigError(f"crop: {crop!r} is not one of {', '.join(filters)}")
        self.feature_dim(layer, window=window, size=size)
        frames = decode.stream_frames(path, fps=Fraction(str(fps)), filters=filters[crop], threads=threads)
        encode, rows, waiting = self._encoders["video"], [], collections.deque()
        with (
            closing(frames),
            closing(_ahead(_batches(_windows(frames, window, stride), batch_size, window))) as batches,
        ):
            for batch, count in batches:
                # One batch is decoded, the one before is on the device: no more than that is kept.
                waiting.append((encode(self.variables, {"video": batch})[layer], count))
                while len(waiting) > 1:
                    rows.append(_fetch(*waiting.popleft()))
        rows += [_fetch(*output) for output in waiting]
        if not rows:
            raise decode.VideoError(path, "no frames", f"shorter than a frame at {fps} a second")
        return np.concatenate(rows)

    def feature_dim(self, layer: str, *, window: int, size: int) -> int:
        """C of an output of the video encoder, for windows of so many frames of `size` x `size` pixels.

        Raises:
          ConfigError: where the encoder has no such output, or none `[B, C]`.
        """
        video = jax.ShapeDtypeStruct((1, window, size, size, 3), np.uint8)
        outputs = jax.eval_shape(self._encoders["video"], self.variables, {"video": video})
        vectors = {name: output.shape[1] for name, output in outputs.items() if output.ndim == 2}
        if layer not in vectors:
            raise ConfigError(f"layer: {layer!r} is not one of {', '.join(vectors)}")
        return vectors[layer]

    def fingerprint(self) -> str:
        """A digest (SHA-256) of the names, shapes and values of all variables: the same weights, the same text."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def encode_text(
        self, sentences: Sequence[str], *, lower_case: bool | None = None, max_words: int | None = None
    ) -> np.ndarray:
        """Embeds sentences: `[N, D]`. Words that the word list has not are dropped.

        Args:
          sentences: As a person writes them.
          lower_case: Whether they are lower-cased first; `config.text.lower_case` if not given.
          max_words: How many known words of each are kept; `config.text.max_words_raw` if not given.

        Raises:
          VocabularyError: where the config names no usable word list.
          ValueError: for a single string.
        """
        ids = self.word_ids(sentences, lower_case=lower_case, max_words=max_words)
        return np.asarray(self._encoders["text"](self.variables, {"text": ids})["text_embedding"])

    def word_ids(
        self, sentences: Sequence[str], *, lower_case: bool | None = None, max_words: int | None = None
    ) -> np.ndarray:
        """Rows of the word table that `encode_text` uses: int32 `[N, L]`, 0 after the last; all 0 if no word is known.

        Arguments and errors as `encode_text`.
        """
        if isinstance(sentences, str):
            raise ValueError("encode_text: expected a list of sentences, found one string")
        if self._vocabulary is None:
            self._vocabulary = word_list.load(self.config.text.vocabulary, self.config.text.rows)
        text = self.config.text
        lower = text.lower_case if lower_case is None else lower_case
        length = max_words or text.max_words_raw
        return np.stack([word_list.encode(sentence, self._vocabulary, length, lower=lower) for sentence in sentences])

    def _video(self, video: str | Path | np.ndarray, start: float) -> dict[str, np.ndarray]:
        clips = self.config.clips
        if isinstance(video, str | Path):
            from vlm_jax.video import decode

            video = decode.read_clip(
                video,
                start=start,
                num_frames=clips.num_frames,
                fps=clips.fps,
                filters=decode.square_crop(clips.size),
            )
        if video.dtype != np.uint8 or video.ndim not in (4, 5) or video.shape[-1] != 3:
            raise ValueError(f"encode_video: expected uint8 [T, H, W, 3], found {video.dtype} {list(video.shape)}")
        batch = video if video.ndim == 5 else video[None]
        outputs = jax.device_get(self._encoders["video"](self.variables, {"video": batch}))
        return {name: value if video.ndim == 5 else value[0] for name, value in outputs.items()}


def load(checkpoint: str | Path, *, vocabulary: str | Path = "") -> Model:
    """Restores a model.

    Args:
      checkpoint: A workdir (its newest checkpoint), a step's folder, a converted checkpoint, or `released:NAME`.
      vocabulary: Word list to use instead of the config's; a converted checkpoint names none.

    Raises:
      CheckpointError: where there is no checkpoint.
      ConfigError: where no config.json lies beside it.
    """
    folder = checkpoint_folder(checkpoint_path(checkpoint))
    config = configs.find(folder)
    if vocabulary:
        config.text.vocabulary = str(vocabulary)
    task = get_task(config)
    return Model(config, task, restore_variables(folder, task.abstract_variables()))


def _windows(frames: Iterable[np.ndarray], window: int, stride: int) -> Iterator[list[np.ndarray]]:
    """Windows of up to `window` frames that begin every `stride` frames, until one holds the last frame."""
    held: collections.deque[np.ndarray] = collections.deque(maxlen=window)
    count, end = 0, window
    for count, frame in enumerate(frames, start=1):
        held.append(frame)
        if count == end:
            yield list(held)
            end += stride
    begin = end - window
    if begin < count and (count > end - stride or begin == 0):
        yield list(held)[begin - count :]


def _batches(windows: Iterable[list[np.ndarray]], batch_size: int, window: int) -> Iterator[tuple[np.ndarray, int]]:
    """Windows in batches `[batch_size, window, H, W, 3]`, black where there is nothing, and how many each holds."""
    batch, count = None, 0
    for frames in windows:
        if batch is None:
            batch, count = np.zeros((batch_size, window, *frames[0].shape), np.uint8), 0
        batch[count, : len(frames)] = frames
        count += 1
        if count == batch_size:
            yield batch, count
            batch = None
    if batch is not None:
        yield batch, count


def _ahead(items: Iterator[tuple[np.ndarray, int]]) -> Iterator[tuple[np.ndarray, int]]:
    """The same items, made in a thread of their own, a few in advance."""
    with ThreadPoolExecutor(1) as thread:
        waiting = collections.deque(thread.submit(next, items, None) for _ in range(AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, items, None))
            yield item


def _fetch(output: jax.Array, count: int) -> np.ndarray:
    return np.asarray(output, np.float32)[:count]
