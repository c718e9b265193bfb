"""MIL-NCE's records and what the model reads from them."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from vlm_jax.data import images
from vlm_jax.data.pipeline import TrainPipeline
from vlm_jax.data.protocol import check_protocol
from vlm_jax.data.record_examples import RecordExamples, RecordSource, Split, read_features
from vlm_jax.errors import DataError
from vlm_jax.systems.milnce import captions
from vlm_jax.text import word_list
from vlm_jax.types import DataShard

# As bytes: TFDS would store float64 as float32, and nearly equal times decide which captions are candidates.
SECOND = tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes")
SECONDS = tfds.features.Tensor(shape=(None,), dtype=np.float64, encoding="bytes")

_SEGMENT = {
    "video_id": tfds.features.Text(),
    # Whole second of the first frame, and the seek seconds of this record, both included.
    "start": np.int32,
    "seek_first": np.int32,
    "seek_last": np.int32,
    "height": np.int32,
    "width": np.int32,
    # Captions whose clips may begin here and their neighbours; number of the first one, and of all of the video.
    "caption_first": np.int32,
    "caption_total": np.int32,
    "caption_start": SECONDS,
    "caption_end": SECONDS,
    "caption_text": tfds.features.Sequence(tfds.features.Text()),
}
TRAINING_FEATURES = tfds.features.FeaturesDict(
    {**_SEGMENT, "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"))}
)
"""A segment of a narrated video. Frame i is what the video shows at `start + i / fps` seconds."""
MP4_FEATURES = tfds.features.FeaturesDict({**_SEGMENT, "mp4": tfds.features.Tensor(shape=(), dtype=np.object_)})
"""The same with its frames as a video file, which has no bytes where there are no frames."""
ORIGINAL_FEATURES = tfds.features.FeaturesDict({**_SEGMENT, "video": tfds.features.Tensor(shape=(), dtype=np.object_)})
"""A whole narrated video as its own file, at its own size and rate, from which clips are cut as the reference does."""
FORMATS = {"jpeg": TRAINING_FEATURES, "mp4": MP4_FEATURES, "original": ORIGINAL_FEATURES}
"""Features of the training records, by the protocol's `format`."""


@dataclasses.dataclass(frozen=True)
class Clips:
    """How training clips are taken from videos.

    Attributes:
      num_frames: T.
      fps: Frames a second.
      size: Height and width.
      min_time: Captions shorter than this are widened, seconds.
      num_candidates: K.
      max_words: L.
      crop_only: Crop from the frame as it is; else the largest square, scaled.
      center_crop: Crop in the middle.
      random_flip: Mirror every second clip.
      lower_case: Lower-case captions before their words are looked up.
    """

    num_frames: int
    fps: int
    size: int
    min_time: float
    num_candidates: int
    max_words: int
    crop_only: bool
    center_crop: bool
    random_flip: bool
    lower_case: bool = False

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.num_frames / self.fps


def clip_weights(
    start: np.ndarray, end: np.ndarray, seeks: tuple[int, int], min_time: float, clip_seconds: float
) -> np.ndarray:
    """Chance of each caption's clip to begin in `seeks` (whole seconds, both included): `[N]`.

    A caption's clip begins at one of its own whole seconds, each as likely; a record holds some of them.
    """
    weights = np.zeros(len(start))
    for caption, (begin, finish) in enumerate(zip(start, end, strict=True)):
        first, last = captions.seek_range(captions.clip_interval(begin, finish, min_time), clip_seconds)
        weights[caption] = max(0, min(last, seeks[1]) - max(first, seeks[0]) + 1) / (last - first + 1)
    return weights


def draw_clip(
    clips: Clips,
    vocabulary: Mapping[str, int],
    record: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, int, float, float, bool]:
    """Draws one training example from a segment: caption, seek second, crop and flip, in the reference's order.

    Returns:
      Word ids `[K, L]` of the candidates, index of the clip's first frame in the segment, horizontal and vertical
      place of the crop in [0, 1], and whether to mirror.
    """
    start, end, texts = record["caption_start"], record["caption_end"], record["caption_text"]
    seeks = int(record["seek_first"]), int(record["seek_last"])
    weights = clip_weights(start, end, seeks, clips.min_time, clips.seconds)
    caption = int(rng.choice(len(weights), p=weights / weights.sum()))
    first, last = captions.seek_range(
        captions.clip_interval(start[caption], end[caption], clips.min_time), clips.seconds
    )
    seek = int(rng.integers(max(first, seeks[0]), min(last, seeks[1]) + 1))
    u, w = (0.5, 0.5) if clips.center_crop else rng.random(2)
    flip = bool(clips.random_flip and rng.random() < 0.5)

    # A record holds as many neighbours as any bag reaches, but candidates are counted over the whole video.
    offset, total = int(record["caption_first"]), int(record["caption_total"])
    padded_start, padded_end = np.full(total, np.nan), np.full(total, np.nan)
    padded_start[offset : offset + len(start)], padded_end[offset : offset + len(end)] = start, end
    bag = captions.candidates(padded_start, padded_end, offset + caption, clips.num_candidates)
    ids = [
        word_list.encode(texts[number - offset].decode(), vocabulary, clips.max_words, lower=clips.lower_case)
        for number in bag
    ]
    return np.stack(ids), (seek - int(record["start"])) * clips.fps, float(u), float(w), flip


def records_format(split: Split) -> str:
    """How the frames of training records are stored: a key of `FORMATS`.

    Raises:
      DataError: where this version does not know it.
    """
    form = split.protocol.get("format", "jpeg")
    if form not in FORMATS:
        raise DataError(f"data {split.directory}: format = {form!r} is not one of {', '.join(FORMATS)}")
    return form


def first_captions(directory: str, most: int = 1000) -> list[str]:
    """Return the captions of the first training records, at least `most` if there are as many; no frames are read."""
    found: list[str] = []
    for record in read_features(Split(directory, "train"), {"caption_text": _SEGMENT["caption_text"]}):
        found += [text.decode() for text in record["caption_text"]]
        if len(found) >= most:
            break
    return found


def read_training(serialised: tf.Tensor, form: str) -> dict[str, tf.Tensor]:
    """A training record, its frames not decoded."""
    return FORMATS[form].deserialize_example(
        serialised, decoders={"frames": tfds.decode.SkipDecoding()} if form == "jpeg" else None
    )


def train_pipeline(
    directory: str,
    clips: Clips,
    vocabulary: Mapping[str, int],
    shard: DataShard,
    *,
    streams: int,
    block: int,
    workers: int,
) -> TrainPipeline:
    """Batches of `video` uint8 `[B, T, S, S, 3]`, `text` int32 `[B, K, L]` and `flip` bool `[B]`.

    Raises:
      DataError: where the records were prepared for other clips.
    """
    split = Split(directory, "train")
    wanted = {"kind": "milnce_training", "fps": clips.fps, "min_time": clips.min_time, "clip_seconds": clips.seconds}
    check_protocol(directory, split.protocol, wanted)
    limits = [("max_candidates", clips.num_candidates), ("smallest_side", clips.size if clips.crop_only else 0)]
    for key, value in limits:
        if value > split.protocol[key]:
            check_protocol(directory, split.protocol, {key: value})
    form = records_format(split)
    names = (
        "start",
        "seek_first",
        "seek_last",
        "caption_first",
        "caption_total",
        "caption_start",
        "caption_end",
        "caption_text",
    )

    def draw(seed: np.int64, *values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(int(seed))
        ids, first, u, w, flip = draw_clip(clips, vocabulary, dict(zip(names, values, strict=True)), rng)
        return ids.astype(np.int32), np.int32(first), np.float64(u), np.float64(w), np.bool_(flip)

    def decode(serialised: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        record = read_training(serialised, form)
        ids, first, u, w, flip = tf.numpy_function(
            draw, [seed, *(record[name] for name in names)], [tf.int32, tf.int32, tf.float64, tf.float64, tf.bool]
        )
        place = record["height"], record["width"], u, w
        settings = {"num_frames": clips.num_frames, "size": clips.size, "crop_only": clips.crop_only}
        if form == "original":
            second = first // clips.fps
            video = images.decode_video_clip(record["video"], second, u, w, fps=clips.fps, **settings)
        elif form == "mp4":
            video = images.decode_segment_clip(record["mp4"], first, *place, **settings)
        else:
            video = images.decode_clip(record["frames"][first : first + clips.num_frames], *place, **settings)
        return {
            "video": video,
            "text": tf.ensure_shape(ids, [clips.num_candidates, clips.max_words]),
            "flip": tf.ensure_shape(flip, []),
        }

    def stretch(serialised: tf.Tensor) -> tuple[str, float, float]:
        record = read_training(serialised, form)
        begin = float(record["start"])
        length = images.seconds_shown(record, split.protocol["fps"])
        return record["video_id"].numpy().decode(), begin, begin + length

    examples = RecordExamples(RecordSource(split, decode, stretch), workers=workers)
    return TrainPipeline(examples, shard, streams=streams, block=block)
