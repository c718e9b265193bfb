"""Records of images and videos, and the pipelines of training and evaluation."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from vlm_jax.data.order import Place
from vlm_jax.data.pipeline import EvaluationPipeline, TrainPipeline
from vlm_jax.data.protocol import PROTOCOL, check_protocol
from vlm_jax.data.record_examples import Decode, RecordExamples, RecordReference, RecordSource, Split
from vlm_jax.errors import ConfigError, DataError
from vlm_jax.systems.snps3 import answers, samples
from vlm_jax.systems.snps3.samples import FRAMES, VIEW, ItemSource, MakeArrays
from vlm_jax.systems.snps3.sampling import frame_indices
from vlm_jax.systems.snps3.table import KIND, ItemTable, read_table
from vlm_jax.systems.snps3.transforms import evaluation_view, on_canvas, training_view
from vlm_jax.types import DataShard

_RECORD = {
    # Number of the part in the list that the preparation began with.
    "part": np.int64,
    "clip_name": tfds.features.Text(),
    "height": np.int32,
    "width": np.int32,
    # First frame of the part and its number of frames, within the frames or the video of the record.
    "first": np.int64,
    "count": np.int64,
}
FEATURES = {
    "frames": tfds.features.FeaturesDict(
        {**_RECORD, "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3)))}
    ),
    "video": tfds.features.FeaturesDict({**_RECORD, "video": tfds.features.Tensor(shape=(), dtype=np.object_)}),
}
"""Features of a record by the format of its data set: encoded frames, one for an image, or the bytes of a video."""
USES = {
    "pretraining": "captions",
    "retrieval": "captions",
    "question_answering": "questions",
    "multiple_choice": "choices",
}
"""Use of the data that a head trains on."""
EVALUATED = {"retrieval": "captions", "answers": "questions", "choices": "choices"}
"""Use of the data of each kind of evaluation; 'loss' has that of the head."""


def train_pipeline(config: ConfigDict, shard: DataShard) -> TrainPipeline:
    """Return endless batches of `video`, `size` for whole frames, and the texts and labels of `config.head`.

    Args:
      config: Config of the run.
      shard: Part of every batch that this process supplies.

    Raises:
      UserError: If data, vocabulary or settings do not fit together.
    """
    wanted = config.data
    if not wanted.directories:
        raise ConfigError(
            "config.data.directories: empty, expected prepared data sets (python -m data_prep.snps3 items)"
        )
    frames = config.frames
    if frames.form == "crop" and not frames.size <= frames.short_side[0] <= frames.short_side[1]:
        raise ConfigError(
            f"config.frames.short_side: {tuple(frames.short_side)}, expected from the crop's size {frames.size} "
            "(config.frames.size) on, the smaller one first"
        )
    splits = [open_split(directory, wanted.split, USES[config.head], config) for directory in wanted.directories]
    sources = [_train_source(split, table, config.head) for split, table in splits]
    buckets = samples.train_buckets(sources, frames)
    decode = _decoders(splits, config, (frames.heights[-1], frames.widths[-1]), drawn=True)
    return TrainPipeline(
        ItemExamples(decode, sources, workers=wanted.workers),
        shard,
        streams=wanted.streams,
        block=wanted.block,
        weights=tuple(wanted.weights),
        buckets=buckets,
        collate=samples.collate(sources, training_arrays(config, sources), drawn=True),
    )


def evaluation_pipeline(config: ConfigDict, wanted: ConfigDict, shard: DataShard) -> EvaluationPipeline:
    """Return batches of every item once: of every video for retrieval, of every question otherwise.

    Args:
      config: Config of the run.
      wanted: Entry of `config.evaluation`, of which `kind`, `directory` and `split` matter here.
      shard: Part of every batch that this process supplies.

    Raises:
      UserError: If data, vocabulary or settings do not fit together.
    """
    frames = config.frames
    if frames.form == "crop" and frames.evaluation_short_side < frames.size:
        raise ConfigError(
            f"config.frames.evaluation_short_side: {frames.evaluation_short_side}, expected at least the crop's size "
            f"{frames.size} (config.frames.size)"
        )
    use = USES[config.head] if wanted.kind == "loss" else EVALUATED[wanted.kind]
    split, table = open_split(wanted.directory, wanted.split, use, config)
    source = (
        _train_source(split, table, config.head) if wanted.kind == "loss" else ItemSource(table, np.arange(len(table)))
    )
    buckets = samples.evaluation_buckets([source], frames)
    canvas = (buckets.sizes[0][-1], buckets.sizes[1][-1]) if buckets else (0, 0)
    make: MakeArrays | None = None
    if wanted.kind == "loss":
        make = training_arrays(config, [source])
    elif wanted.kind == "answers":
        make = samples.question_arrays(samples.make_settings(config), 0)
    elif wanted.kind == "choices":
        options = max(config.data.options, samples.most(table.first_option, source.items))
        make = samples.choice_arrays(samples.make_settings(config), options, with_label=False)
    return EvaluationPipeline(
        ItemExamples(_decoders([(split, table)], config, canvas, drawn=False), [source], workers=config.data.workers),
        shard,
        buckets=buckets,
        collate=samples.collate([source], make, drawn=False),
    )


def training_arrays(config: ConfigDict, sources: Sequence[ItemSource]) -> MakeArrays:
    """Return the function that makes the texts and labels of a training example of `config.head`.

    Raises:
      UserError: If a question has more options than `config.data.options`, or the vocabulary cannot be used.
    """
    settings = samples.make_settings(config)
    if config.head == "pretraining":
        return samples.pretraining_arrays(settings, with_words=bool(config.words.matching))
    if config.head == "retrieval":
        return samples.caption_arrays(settings)
    if config.head == "question_answering":
        return samples.question_arrays(settings, max(samples.most(own.table.first_label, own.items) for own in sources))
    most = max(samples.most(source.table.first_option, source.items) for source in sources)
    if most > config.data.options:
        raise DataError(f"config.data.options: {config.data.options}, but a question of the data has {most}")
    return samples.choice_arrays(settings, config.data.options, with_label=True)


def open_split(directory: str, split_name: str, use: str, config: ConfigDict) -> tuple[Split, ItemTable]:
    """Return a split and the table of its items.

    Raises:
      DataError: If it was prepared for another use or other answers, or the table does not fit the records.
    """
    split = Split(directory, split_name)
    check_protocol(directory, split.protocol, {"kind": KIND, "use": use})
    if use == "questions":
        wanted = {"num_answers": config.model.num_answers}
        if config.answers.vocabulary and split.protocol["answers_sha256"]:
            wanted["answers_sha256"] = answers.fingerprint(answers.read(Path(config.answers.vocabulary)))
        check_protocol(directory, split.protocol, wanted)
    table = read_table(directory, split_name)
    if len(table.videos) != split.records.sum() or (split.records != split.groups).any():
        raise DataError(
            f"data {directory}: the table of {split_name!r} has {len(table.videos)} records, {PROTOCOL} says "
            f"{split.records.sum()}; run the preparation again with --finalize"
        )
    return split, table


def _train_source(split: Split, table: ItemTable, head: str) -> ItemSource:
    """Return the items that can be trained on: questions need an answer of the vocabulary, choices a right one.

    Raises:
      DataError: If there is none.
    """
    items = np.arange(len(table))
    if head in ("question_answering", "multiple_choice"):
        items = np.flatnonzero(table.best_labels >= 0)
    if not len(items):
        raise DataError(f"data {split.directory}: no question has an answer to train on")
    return ItemSource(table, items)


class ItemExamples(RecordExamples):
    """Items of one or several data sets, several of which may share a record.

    Args:
      records: Records of each data set.
      sources: Items of each data set.
      workers: Number of examples decoded in parallel; 0 leaves the choice to tf.data.
    """

    def __init__(self, records: Iterable[RecordSource], sources: Sequence[ItemSource], workers: int = 0) -> None:
        super().__init__(*records, workers=workers)
        self._records = [source.table.records[source.items] for source in sources]
        self._first_records = [np.cumsum([0, *own.split.records]) for own in self.sources]
        # First item of every shard, and the number of all items.
        pairs = zip(self._records, self._first_records, strict=True)
        self._first_items = [np.searchsorted(records, first) for records, first in pairs]
        self.sizes = [np.diff(first) for first in self._first_items]
        self.num_items = sum(map(len, self._records))

    def locate(self, place: Place) -> RecordReference:
        """Return the record of a training item, with a seed of its own. Raises as `RecordExamples.locate` does."""
        item = self._first_items[place.source][place.shard] + place.group
        record = self._records[place.source][item] - self._first_records[place.source][place.shard]
        return super().locate(place._replace(group=int(record)))

    def item(self, number: int) -> RecordReference:
        """Return the record of an item of evaluation. Raises as `RecordExamples.item` does."""
        (records,) = self._records  # evaluation has one data set
        return super().item(int(records[number]))


def _decoders(
    splits: Sequence[tuple[Split, ItemTable]], config: ConfigDict, canvas: tuple[int, int], *, drawn: bool
) -> list[RecordSource]:
    return [
        RecordSource(split, decode_item(split.protocol["format"], config, canvas, drawn=drawn)) for split, _ in splits
    ]


def decode_item(form: str, config: ConfigDict, canvas: tuple[int, int], *, drawn: bool) -> Decode:
    """Return the function that reads the frames of an item from a record.

    An example has `video` `[N, H, W, 3]`, uint8 (or float32 if `config.strict`), its `size` int32 `[2]` without
    padding, and the `seed` of its random numbers.

    Args:
      form: Format of the records, 'frames' or 'video'.
      config: Config of the run.
      canvas: Height and width of the result for whole frames, pixels; smaller pictures are padded with 0.
      drawn: If true, frames and views are drawn at random; else they are those of evaluation.
    """
    frames, kind = config.frames, tf.float32 if config.strict else tf.uint8
    shape = (frames.size, frames.size) if frames.form == "crop" else canvas
    count = frames.clips * frames.frames_per_clip

    def plan(seed: np.int64, first: np.int64, total: np.int64) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((int(seed), FRAMES)) if drawn else None
        wanted = int(first) + frame_indices(int(total), frames.clips, rng, frames.frames_per_clip)
        # A frame that is shown several times, such as an image, is decoded once.
        places, back = np.unique(wanted, return_inverse=True)
        return places, back.astype(np.int64)

    def show(pictures: np.ndarray, back: np.ndarray, seed: np.int64) -> tuple[np.ndarray, np.ndarray]:
        if drawn:
            rng = np.random.default_rng((int(seed), VIEW))
            seen = training_view(pictures, frames, rng, config.strict)
        else:
            seen = evaluation_view(pictures, frames, config.strict)
        return on_canvas(seen, *shape)[back], np.array(seen.shape[1:3], np.int32)

    def decode(serialised: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        skipped = {"frames": tfds.decode.SkipDecoding()} if form == "frames" else None
        record = FEATURES[form].deserialize_example(serialised, decoders=skipped)
        given = [seed, record["first"], record["count"]]
        places, back = tf.numpy_function(plan, given, [tf.int64, tf.int64])
        if form == "frames":
            images = tf.gather(record["frames"], tf.ensure_shape(places, [None]))
            pictures = tf.map_fn(_decode_picture, images, fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8))
        else:
            pictures = tf.numpy_function(_read_video, [record["video"], places], tf.uint8)
        video, size = tf.numpy_function(show, [pictures, back, seed], [kind, tf.int32])
        return {
            "video": tf.ensure_shape(video, [count, *shape, 3]),
            "size": tf.ensure_shape(size, [2]),
            "seed": seed,
        }

    return decode


def _decode_picture(image: tf.Tensor) -> tf.Tensor:
    # This operation reads PNGs, too.
    return tf.io.decode_jpeg(image, 3, dct_method="INTEGER_ACCURATE")


def _read_video(data: Any, places: np.ndarray) -> np.ndarray:
    """Return the frames of a video, uint8 `[N, H, W, 3]`.

    Raises:
      DataError: If it cannot be decoded.
    """
    from vlm_jax.video.decode import VideoError, frames_at

    try:
        found = list(frames_at(bytes(data), places.tolist()))
    except VideoError as error:
        raise DataError(str(error)) from error
    if len(found) != len(places):
        raise DataError(f"{len(found)} of the {len(places)} frames {places.tolist()} exist")
    return np.stack(found)
