"""Training records of MIL-NCE and the training pipeline."""

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

# As bytes: TFDS would store float64 as float32, and the choice of candidates depends on nearly equal times.
SECOND = tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes")
SECONDS = tfds.features.Tensor(shape=(None,), dtype=np.float64, encoding="bytes")

_SEGMENT = {
    "video_id": tfds.features.Text(),
    # Whole second of the first frame; first and last second, inclusive, at which a clip of this record begins.
    "start": np.int32,
    "seek_first": np.int32,
    "seek_last": np.int32,
    "height": np.int32,
    "width": np.int32,
    # Captions whose clips may begin here, and their neighbours: index of the first one, number of the video's captions.
    "caption_first": np.int32,
    "caption_total": np.int32,
    "caption_start": SECONDS,
    "caption_end": SECONDS,
    "caption_text": tfds.features.Sequence(tfds.features.Text()),
}
TRAINING_FEATURES = tfds.features.FeaturesDict(
    {**_SEGMENT, "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"))}
)
"""Features of a segment of a narrated video. Frame i is shown at `start + i / fps` seconds."""
MP4_FEATURES = tfds.features.FeaturesDict({**_SEGMENT, "mp4": tfds.features.Tensor(shape=(), dtype=np.object_)})
"""Features of a segment whose frames are a video file, of no bytes if there are no frames."""
ORIGINAL_FEATURES = tfds.features.FeaturesDict({**_SEGMENT, "video": tfds.features.Tensor(shape=(), dtype=np.object_)})
"""Features of a whole narrated video as its original file, from which clips are cut as the reference does."""
FORMATS = {"jpeg": TRAINING_FEATURES, "mp4": MP4_FEATURES, "original": ORIGINAL_FEATURES}
"""Features of training records by the protocol's `format`."""


@dataclasses.dataclass(frozen=True)
class Clips:
    """Settings for taking training clips from videos.

    Attributes:
      num_frames: Number of frames per clip, T.
      fps: Frames per second.
      size: Height and width of a frame, pixels.
      min_time: Duration to which shorter captions are widened, seconds.
      num_candidates: Number of candidate captions, K.
      max_words: Number of words per caption, L.
      crop_only: If true, the crop is taken from the frame as it is; else it is the largest square, scaled.
      center_crop: If true, the crop lies in the middle; else at random.
      random_flip: If true, a clip is mirrored with probability 1/2.
      lower_case: If true, captions are lower-cased before their words are looked up.
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
        """Return the duration of a clip, seconds."""
        return self.num_frames / self.fps


def clip_weights(
    start: np.ndarray, end: np.ndarray, seeks: tuple[int, int], min_time: float, clip_seconds: float
) -> np.ndarray:
    """Return the probability that the clip of each of N captions begins in a record: `[N]`.

    A caption's clip begins at one of its whole seconds, all equally likely; a record holds some of them.

    Args:
      start: Starts of the captions, seconds.
      end: Ends of the captions, seconds.
      seeks: First and last whole second of the record, inclusive.
      min_time: Duration to which shorter captions are widened, seconds.
      clip_seconds: Duration of a clip, seconds.
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
    """Draw one training example from a segment: caption, seek second, crop and flip, in the order of the reference.

    Returns:
      Word ids `[K, L]` of the candidates, index of the clip's first frame in the segment, horizontal and vertical
      position of the crop in [0, 1], and true if the clip is mirrored.
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

    # A record holds all neighbours that a bag may contain, but candidates are chosen among all captions of the video.
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
    """Return the format of the frames in training records, a key of `FORMATS`.

    Raises:
      DataError: If the format is unknown.
    """
    form = split.protocol.get("format", "jpeg")
    if form not in FORMATS:
        raise DataError(f"data {split.directory}: format = {form!r} is not one of {', '.join(FORMATS)}")
    return form


def first_captions(directory: str, most: int = 1000) -> list[str]:
    """Return the captions of the first training records, at least `most` if there are so many; no frames are read."""
    found: list[str] = []
    for record in read_features(Split(directory, "train"), {"caption_text": _SEGMENT["caption_text"]}):
        found += [text.decode() for text in record["caption_text"]]
        if len(found) >= most:
            break
    return found


def read_training(serialised: tf.Tensor, form: str) -> dict[str, tf.Tensor]:
    """Parse a training record without decoding its frames."""
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
    """Return batches of `video` uint8 `[B, T, S, S, 3]`, `text` int32 `[B, K, L]` and `flip` bool `[B]`.

    Args:
      directory: Folder of the data set.
      clips: Settings of clips.
      vocabulary: Ids by word.
      shard: Part of every batch that this process supplies.
      streams: Number of streams that supply consecutive parts of every batch.
      block: Number of record groups that are permuted together.
      workers: Number of examples decoded at the same time; 0 lets tf.data choose.

    Raises:
      DataError: If the records were prepared for other clips.
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
