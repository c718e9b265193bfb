"""Records of keyframes, and the pipelines of training and evaluation."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from vlm_jax.data.pipeline import EvaluationPipeline, TrainPipeline
from vlm_jax.data.protocol import PROTOCOL, check_protocol
from vlm_jax.data.record_examples import Decode, RecordExamples, RecordSource, Split
from vlm_jax.errors import ConfigError, DataError
from vlm_jax.systems.lfb import samples
from vlm_jax.systems.lfb.annotations import Sampling, name_of
from vlm_jax.systems.lfb.augment import Augmentation, View, view_frames, whole_view
from vlm_jax.systems.lfb.keyframes import KIND, KeyframeTable, read_table
from vlm_jax.systems.lfb.samples import FeatureBank, MakeView, Memory
from vlm_jax.systems.lfb.targets import Matching
from vlm_jax.types import DataShard

FEATURES = tfds.features.FeaturesDict(
    {
        "video": tfds.features.Text(),
        "second": np.int32,
        "height": np.int32,
        "width": np.int32,
        # Numbers of the frames, ascending; the first frame of a video has the number 1.
        "frame_numbers": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")),
    }
)
"""Features of a keyframe's record."""
_ENDLESS = 1 << 40
_FIELDS = len(View._fields)


def train_pipeline(config: ConfigDict, bank: FeatureBank | None, shard: DataShard) -> TrainPipeline:
    """Return endless batches of clips with boxes and labels; `samples.collate_training` describes them.

    Args:
      config: Config of the run.
      bank: Bank of long-term features, if the model has one.
      shard: Part of every batch that this process supplies.

    Raises:
      DataError: If the records were prepared for other clips or without people, or a bucket is too small.
    """
    wanted, directory = config.data, config.data.directory
    sampling, memory = make_sampling(config), make_memory(config, bank)
    matching = Matching(**config.targets)
    augmentation = Augmentation(tuple(config.clips.short_side), config.clips.size, config.clips.flip)
    split, table = open_split(directory, wanted.split, sampling)
    jitter, stored = split.protocol["jitter"] if table.training else 0, split.protocol["short_side"]
    if sampling.jitter > jitter:
        check_protocol(directory, {"jitter": jitter}, {"jitter": sampling.jitter})
    if stored and augmentation.short_side[1] > stored:
        check_protocol(directory, {"short_side": stored}, {"short_side": augmentation.short_side[1]})
    if augmentation.short_side[0] < augmentation.size:
        raise DataError(
            f"config.clips.short_side: from {augmentation.short_side[0]} on, expected at least the crop's size "
            f"{augmentation.size} (config.clips.size)"
        )
    if not table.num_people.all():
        name = name_of(table.key(int(table.num_people.argmin())))
        raise DataError(f"data {directory}: keyframe {name} of {wanted.split!r} has no person to train on")
    size = (augmentation.size, augmentation.size)
    decode = decode_clip(sampling, split.protocol["start_second"], augmentation.draw, size, drawn=True)
    threshold = wanted.proposal_threshold
    return TrainPipeline(
        RecordExamples(RecordSource(split, decode), workers=wanted.workers),
        shard,
        streams=wanted.streams,
        block=wanted.block,
        buckets=samples.train_buckets(table, threshold, matching, wanted.box_buckets, memory),
        collate=samples.collate_training(table, threshold, matching, memory),
    )


def evaluation_pipeline(
    config: ConfigDict, wanted: ConfigDict, bank: FeatureBank | None, shard: DataShard
) -> EvaluationPipeline:
    """Return batches of every keyframe once, lowest frames first; `samples.collate_evaluation` describes them.

    Args:
      config: Config of the run.
      wanted: Evaluator's own keys, of which `directory`, `split` and `proposal_threshold` matter here.
      bank: Bank of long-term features, if the model has one.
      shard: Part of every batch that this process supplies.

    Raises:
      DataError: If the records were prepared for other clips.
    """
    sampling, memory = make_sampling(config)._replace(jitter=0), make_memory(config, bank)
    short_side, threshold = config.clips.evaluation_short_side, wanted.proposal_threshold
    split, table = open_split(wanted.directory, wanted.split, sampling)
    if split.protocol["short_side"] and short_side > split.protocol["short_side"]:
        check_protocol(wanted.directory, split.protocol, {"short_side": short_side})
    drawn = config.bank.random_in_evaluation
    buckets = samples.evaluation_buckets(table, threshold, short_side, config.data.box_buckets, memory, drawn=drawn)
    # tf.data stacks clips of one size only; the collate function cuts them to the bucket's.
    largest = buckets.sizes[0][-1], buckets.sizes[1][-1]

    def view(rng: np.random.Generator, height: int, width: int) -> View:
        del rng
        return whole_view(height, width, short_side)

    decode = decode_clip(sampling, split.protocol["start_second"], view, largest, drawn=False)
    seed = shard.seed if drawn else None
    return EvaluationPipeline(
        RecordExamples(RecordSource(split, decode), workers=config.data.workers),
        shard,
        buckets=buckets,
        collate=samples.collate_evaluation(table, threshold, short_side, memory, seed),
    )


def make_sampling(config: ConfigDict) -> Sampling:
    """Return the rule by which clips take their frames.

    Raises:
      ConfigError: for a `frame_shift` that records have no frames for.
    """
    if config.clips.frame_shift not in (0, 1):
        raise ConfigError(f"config.clips.frame_shift: {config.clips.frame_shift}, expected 0 (0.x) or 1 (1.x)")
    return Sampling(**{name: config.clips[name] for name in Sampling._fields})


def make_memory(config: ConfigDict, bank: FeatureBank | None) -> Memory | None:
    """Return the bank with the window that clips see of it."""
    if bank is None:
        return None
    return Memory(bank, config.bank.window, config.bank.per_second, tuple(config.data.bank_buckets))


def open_split(directory: str, split_name: str, sampling: Sampling) -> tuple[Split, KeyframeTable]:
    """Return a split and the table of its keyframes.

    Raises:
      DataError: if it was prepared for other clips, or the table does not fit the records.
    """
    split = Split(directory, split_name)
    wanted = {"kind": KIND, **{name: getattr(sampling, name) for name in ("fps", "num_frames", "interval")}}
    check_protocol(directory, split.protocol, wanted)
    table = read_table(directory, split_name)
    if len(table) != split.records.sum():
        raise DataError(
            f"data {directory}: the table of {split_name!r} has {len(table)} keyframes, {PROTOCOL} says "
            f"{split.records.sum()}; run the preparation again with --finalize"
        )
    return split, table


def decode_clip(
    sampling: Sampling, start_second: int, make_view: MakeView, size: tuple[int, int], *, drawn: bool
) -> Decode:
    """Return the function that reads a clip from a record; only the clip's own frames are decoded.

    Args:
      sampling: Rule by which the clip takes its frames.
      start_second: Second of a video's first frame.
      make_view: Function that chooses the view.
      size: Height and width of the result, pixels; smaller views are padded with 0 at the right and at the bottom.
      drawn: If true, the example has not only `video` and `second`, but also `view` int64 `[8]` and `seed`, from which
        its boxes follow.
    """

    def plan(
        seed: np.int64, second: np.int32, stored: np.ndarray, height: np.int32, width: np.int32
    ) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(int(seed))
        wanted = sampling.numbers(int(second), start_second, _ENDLESS, sampling.draw_shifts(rng))
        # A record holds all frames around its keyframe, so at the ends of a film its own ends are those of the film.
        wanted = wanted.clip(stored[0], stored[-1])
        places = np.searchsorted(stored, wanted)
        if (stored[places] != wanted).any():
            raise DataError(f"frames {wanted.tolist()} of second {second}, the record has {stored.tolist()}")
        return places, np.array(make_view(rng, int(height), int(width)), np.int64)

    def show(frames: np.ndarray, fields: np.ndarray) -> np.ndarray:
        seen = view_frames(frames, View(*fields.tolist()))
        if seen.shape[1:3] == size:
            return seen
        video = np.zeros((len(seen), *size, 3), np.uint8)
        video[:, : seen.shape[1], : seen.shape[2]] = seen
        return video

    def decode(serialised: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        record = FEATURES.deserialize_example(serialised, decoders={"frames": tfds.decode.SkipDecoding()})
        given = [record[name] for name in ("second", "frame_numbers", "height", "width")]
        places, fields = tf.numpy_function(plan, [seed, *given], [tf.int64, tf.int64])
        images = tf.gather(record["frames"], tf.ensure_shape(places, [sampling.num_frames]))
        frames = tf.stack([tf.io.decode_jpeg(image, 3, dct_method="INTEGER_ACCURATE") for image in tf.unstack(images)])
        video = tf.ensure_shape(tf.numpy_function(show, [frames, fields], tf.uint8), [sampling.num_frames, *size, 3])
        made = {"video": video, "second": record["second"]}
        return made | ({"view": tf.ensure_shape(fields, [_FIELDS]), "seed": seed} if drawn else {})

    return decode
