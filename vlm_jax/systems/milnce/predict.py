"""Predictor of MIL-NCE: embeddings of clips and sentences, features of whole videos and of words."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError, DataError
from vlm_jax.extraction import Extractor
from vlm_jax.predictor import Match, Predictor
from vlm_jax.systems.milnce.task import make_task
from vlm_jax.text import word_list
from vlm_jax.text_features import LAYERS, EncodedText, TextSettings
from vlm_jax.train.batches import predict_batches
from vlm_jax.types import Variables
from vlm_jax.video.listing import videos_of

SENTENCES = 64
"""Number of sentences that `text_features` encodes at the same time."""


def make_predictor(config: ConfigDict, variables: Variables, extractor: Extractor | None) -> "MilNcePredictor":
    """Return the predictor of a restored checkpoint; it works on raw video and needs no extractor."""
    del extractor
    return MilNcePredictor(config, variables)


class MilNcePredictor(Predictor):
    """Predictor that embeds video and text into one space."""

    def __init__(self, config: ConfigDict, variables: Variables) -> None:
        super().__init__(config, variables)
        self._encode = {name: self.compile(encoder) for name, encoder in make_task(config).encoders.items()}
        self._vocabulary: dict[str, int] | None = None

    def encode_video(self, video: str | Path | np.ndarray, *, start: float = 0.0) -> np.ndarray:
        """Embed one clip, or a batch of them.

        Args:
          video: Video file, of which one clip is read (centre square, at the config's rate, black beyond the end); or
            RGB frames, uint8 `[T, H, W, 3]` or `[B, T, H, W, 3]`.
          start: Start of the clip in the file, seconds.

        Returns:
          `[D]`, or `[B, D]` for a batch.

        Raises:
          VideoError: If the file cannot be read.
          ValueError: If frames have another shape or type.
        """
        return self._video(video, start)["video_embedding"]

    def video_features(self, video: str | Path | np.ndarray, *, start: float = 0.0) -> np.ndarray:
        """Return the pooled feature `mixed_5c`, `[C]` or `[B, C]`; arguments and errors as in `encode_video`."""
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
        """Return the features of a whole video, `[N, C]` float32, one row per window (`video.windows.window_batches`).

        Args:
          path: Video file.
          layer: Output of the video encoder, such as 'mixed_5c' or 'video_embedding'.
          window: Number of frames per window; None for the clip length of the config.
          stride: Number of frames from one window to the next; None for `window`.
          fps: Frames per second; None for the config's.
          size: Height and width of a frame, pixels; None for the config's.
          crop: Crop of a frame: 'center', the largest square, or 'none', the whole frame squeezed into a square.
          batch_size: Number of windows encoded at the same time; it changes no feature.
          threads: Number of decoder threads, 0 for one per core.

        Raises:
          VideoError: If the file cannot be used.
          ConfigError: If a number is out of range, or the encoder does not have the layer.
        """
        from vlm_jax.video.windows import CROPS, window_batches

        clips = self.config.clips
        window, fps, size = window or clips.num_frames, fps or clips.fps, size or clips.size
        numbers = {"window": window, "stride": stride or window, "fps": fps, "size": size, "batch_size": batch_size}
        for name, value in numbers.items():
            if value <= 0:
                raise ConfigError(f"{name}: expected more than 0, found {value}")
        if crop not in CROPS:
            raise ConfigError(f"crop: {crop!r} is not one of {', '.join(CROPS)}")
        self.feature_dim(layer, window=window, size=size)
        batches = window_batches(path, **numbers, crop=crop, threads=threads)
        rows = [outputs[layer] for _, outputs in predict_batches(self._encode["video"], self.variables, batches)]
        return np.concatenate(rows).astype(np.float32)

    def search(
        self,
        texts: Sequence[str],
        videos: str | Path | Sequence[str | Path],
        top_k: int = 5,
        *,
        window: int | None = None,
        stride: int | None = None,
        batch_size: int = 8,
    ) -> list[list[Match]]:
        """Return the windows of videos that fit each text, best first; scores are dot products of embeddings.

        Args:
          texts: N texts; words that the word list lacks are dropped with a warning.
          videos: Folder, or list of files and folders. Files that cannot be read are left out with a warning.
          top_k: Number of windows to return for each text.
          window: Number of frames per window; None for the clip length of the config.
          stride: Number of frames from one window to the next; None for `window`.
          batch_size: Number of windows encoded at the same time; it changes no score.

        Raises:
          ConfigError: If a number is out of range.
          DataError: If there is no video that can be read, or a text has no known word.
        """
        from vlm_jax.video.decode import VideoError

        if top_k < 1:
            raise ConfigError(f"top_k: expected at least 1, found {top_k}")
        frames, fps = window or self.config.clips.num_frames, self.config.clips.fps
        ids = self.word_ids(texts)
        if unknown := [text for text, own in zip(texts, ids, strict=True) if not own.any()]:
            raise DataError(f"search: no word of {unknown[0]!r} is in {self.config.text.vocabulary}")
        embeddings = self._embed_ids(ids)
        found: list[list[Match]] = [[] for _ in texts]
        read = 0
        for name, path in videos_of(videos).items():
            try:
                rows = self.extract(path, layer="video_embedding", window=frames, stride=stride, batch_size=batch_size)
            except VideoError as error:
                warnings.warn(f"{error}; left out", stacklevel=2)
                continue
            read += 1
            starts = np.arange(len(rows)) * (stride or frames)
            for own, scores in zip(found, embeddings @ rows.T, strict=True):
                spans = zip(scores.tolist(), starts.tolist(), strict=True)
                own += [Match(name, score, start / fps, (start + frames) / fps) for score, start in spans]
                own[:] = sorted(own, key=lambda match: -match.score)[:top_k]
        if not read:
            raise DataError("search: none of the videos can be read")
        return found

    def feature_dim(self, layer: str, *, window: int, size: int) -> int:
        """Return the size C of an output of the video encoder for `window` frames of `size` x `size` pixels.

        Raises:
          ConfigError: If the encoder has no such output of shape `[B, C]`.
        """
        video = jax.ShapeDtypeStruct((1, window, size, size, 3), np.uint8)
        outputs = jax.eval_shape(self._encode["video"], self.variables, {"video": video})
        vectors = {name: output.shape[1] for name, output in outputs.items() if output.ndim == 2}
        if layer not in vectors:
            raise ConfigError(f"layer: {layer!r} is not one of {', '.join(vectors)}")
        return vectors[layer]

    def encode_text(
        self, sentences: Sequence[str], *, lower_case: bool | None = None, max_words: int | None = None
    ) -> np.ndarray:
        """Embed sentences; words that the word list lacks are dropped with a warning.

        Args:
          sentences: N raw sentences.
          lower_case: If true, sentences are lower-cased first; None for the setting of `config.text`.
          max_words: Number of known words kept per sentence; None for `config.text.max_words_raw`.

        Returns:
          `[N, D]`.

        Raises:
          VocabularyError: If the config names no usable word list.
          ValueError: If `sentences` is a single string.
        """
        ids = self.word_ids(sentences, lower_case=lower_case, max_words=max_words)
        return self._embed_ids(ids)

    def word_ids(
        self, sentences: Sequence[str], *, lower_case: bool | None = None, max_words: int | None = None
    ) -> np.ndarray:
        """Return the word ids of sentences, int32 `[N, L]`, padded with 0; all 0 for a sentence without known words.

        Arguments and errors as in `encode_text`.
        """
        if isinstance(sentences, str):
            raise ValueError("encode_text: expected a list of sentences, found one string")
        text, vocabulary = self.config.text, self._words()
        lower = self._lower_cases if lower_case is None else lower_case
        length = max_words or text.max_words_raw
        if lost := word_list.cover(sentences, vocabulary, lower=lower).describe(text.vocabulary):
            warnings.warn(f"encode_text: {lost}", stacklevel=3)
        return np.stack([word_list.encode(sentence, vocabulary, length, lower=lower) for sentence in sentences])

    def text_features(self, sentences: Mapping[str, str], layer: str = "sentence") -> EncodedText:
        """Return the features of sentences by name, for systems that take features.

        Args:
          sentences: Sentences by name.
          layer: Layer of the features: 'sentence', the embedding `[S]`, or 'words', the word vectors of the known words
            `[L, C]`.

        Raises:
          ConfigError: If the layer is unknown, or no sentence has a known word.
        """
        if layer not in LAYERS:
            raise ConfigError(f"layer: {layer!r} is not one of {', '.join(LAYERS)}")
        ids = dict(zip(sentences, self.word_ids(list(sentences.values())), strict=True)) if sentences else {}
        known = [name for name in sentences if ids[name].any()]
        unknown = [name for name in sentences if not ids[name].any()]
        text = self.config.text
        if not known:
            raise ConfigError(f"{text.vocabulary}: none of {len(sentences)} sentences has a word of this list")
        if layer == "words":
            table = np.asarray(self.variables["frozen"]["text"]["word_embd"])
            vectors = {name: table[ids[name][ids[name] > 0]] for name in known}
        else:
            vectors = {}
            for begin in range(0, len(known), SENTENCES):
                names = known[begin : begin + SENTENCES]
                batch = np.zeros((SENTENCES, len(ids[names[0]])), np.int32)  # compiled for one size
                batch[: len(names)] = [ids[name] for name in names]
                vectors |= dict(zip(names, self._embed_ids(batch), strict=False))
        settings = TextSettings(
            layer=layer,
            dim=vectors[known[0]].shape[-1],
            fingerprint=self.fingerprint(),
            vocabulary=hashlib.sha256("\n".join(self._words()).encode()).hexdigest(),
            lower_case=self._lower_cases,
            max_words=text.max_words_raw,
        )
        return EncodedText(vectors, unknown, settings)

    def _embed_ids(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(self._encode["text"](self.variables, {"text": ids})["text_embedding"])

    @property
    def _lower_cases(self) -> bool:
        """Return true if sentences given to this predictor are lower-cased."""
        return self.config.text.lower_case or self.config.text.get("lower_case_raw", False)

    def _words(self) -> dict[str, int]:
        if self._vocabulary is None:
            self._vocabulary = word_list.load(self.config.text.vocabulary, self.config.text.rows)
        return self._vocabulary

    def _video(self, video: str | Path | np.ndarray, start: float) -> dict[str, np.ndarray]:
        clips = self.config.clips
        if isinstance(video, str | Path):
            from vlm_jax.video import decode

            filters = decode.square_crop(clips.size)
            video = decode.read_clip(video, start=start, num_frames=clips.num_frames, fps=clips.fps, filters=filters)
        if video.dtype != np.uint8 or video.ndim not in (4, 5) or video.shape[-1] != 3:
            raise ValueError(f"encode_video: expected uint8 [T, H, W, 3], found {video.dtype} {list(video.shape)}")
        batch = video if video.ndim == 5 else video[None]
        outputs = jax.device_get(self._encode["video"](self.variables, {"video": batch}))
        return {name: value if video.ndim == 5 else value[0] for name, value in outputs.items()}
