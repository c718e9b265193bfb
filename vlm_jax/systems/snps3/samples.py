"""Texts and labels of a batch's items, and the sizes that pictures are padded to (numpy only)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from ml_collections import ConfigDict

from vlm_jax.data.pipeline import BatchPlan, Buckets, Collate, Columns
from vlm_jax.errors import DataError
from vlm_jax.systems.snps3.captions import CaptionSettings, draw_false_caption, fixed_text, masked_caption
from vlm_jax.systems.snps3.masking import SignificantWords
from vlm_jax.systems.snps3.significant_words import read_groups, read_ranks
from vlm_jax.systems.snps3.table import ItemTable
from vlm_jax.systems.snps3.transforms import STEP, long_side_size
from vlm_jax.text import vocabulary

TEXT, VIEW, FRAMES = 1, 2, 3
"""Purposes of an example's random numbers."""
FREQUENT = 0.05
"""Share of the items with a height (or width) from which on evaluation has a bucket for exactly this size."""


class Captions(Sequence[list[str]]):
    """Captions of each item of a table, read when they are asked for."""

    def __init__(self, table: ItemTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, item: int) -> list[str]: ...

    @overload
    def __getitem__(self, item: slice) -> list[list[str]]: ...

    def __getitem__(self, item: int | slice) -> list[str] | list[list[str]]:
        if isinstance(item, slice):
            return [self[each] for each in range(*item.indices(len(self)))]
        return self.table.captions(item)


@dataclasses.dataclass(frozen=True)
class ItemSource:
    """Items of one data set that a pipeline visits.

    Attributes:
      table: Table of the data set.
      items: Items of the table that are visited, ascending, int64 `[N]`.
    """

    table: ItemTable
    items: np.ndarray

    @functools.cached_property
    def captions(self) -> Captions:
        """Return the captions of all items of the table."""
        return Captions(self.table)

    @functools.cached_property
    def videos(self) -> np.ndarray:
        """Return the number of the video of every item of the table, int64 `[M]`."""
        return self.table.video_numbers[self.table.records]

    @property
    def sizes(self) -> np.ndarray:
        """Return height and width of the frames of the items that are visited, pixels, `[N, 2]`."""
        return self.table.sizes[self.table.records[self.items]]


Arrays = dict[str, np.ndarray]
MakeArrays = Callable[[ItemSource, int, np.random.Generator], Arrays]
"""(source, item of its table, generator of the example) -> texts and labels of one example."""


def pretraining_arrays(settings: CaptionSettings, with_words: bool) -> MakeArrays:
    """Return the function that makes the masked, raw and false captions of an example."""

    def make(source: ItemSource, item: int, rng: np.random.Generator) -> Arrays:
        own = source.captions[item]
        caption = own[rng.integers(len(own))]
        false = draw_false_caption(source.captions, source.videos, item, rng)
        made = masked_caption(caption, false, rng, settings)
        if not with_words:
            made.pop("words", None)
        return made

    return make


def caption_arrays(settings: CaptionSettings) -> MakeArrays:
    """Return the function that makes one drawn caption of an example, unmasked."""

    def make(source: ItemSource, item: int, rng: np.random.Generator) -> Arrays:
        own = source.captions[item]
        return _text(own[rng.integers(len(own))], settings)

    return make


def question_arrays(settings: CaptionSettings, labels: int) -> MakeArrays:
    """Return the function that makes a question and its labels, padded to a number of `labels`; 0 makes none."""

    def make(source: ItemSource, item: int, rng: np.random.Generator) -> Arrays:
        del rng
        made = _text(source.captions[item][0], settings)
        if labels:
            own = [label for label in source.table.labels(item) if label >= 0]
            made["labels"] = np.array([*own, *[-1] * (labels - len(own))], np.int32)
        return made

    return make


def choice_arrays(settings: CaptionSettings, options: int, with_label: bool) -> MakeArrays:
    """Return the function that makes the options of a question, at most `options`, and the number of the right one."""

    def make(source: ItemSource, item: int, rng: np.random.Generator) -> Arrays:
        del rng
        own = source.table.options(item)
        texts = np.full((options, settings.length), settings.tokenizer.pad_id, np.int32)
        masks = np.zeros((options, settings.length), np.int32)
        for number, option in enumerate(own):
            texts[number], masks[number] = fixed_text(option, settings)
        made = {"text": texts, "text_mask": masks, "option_mask": np.arange(options) < len(own)}
        if with_label:
            made["label"] = np.array(source.table.labels(item)[0], np.int32)
        return made

    return make


def _text(text: str, settings: CaptionSettings) -> Arrays:
    ids, mask = fixed_text(text, settings)
    return {"text": ids, "text_mask": mask}


def make_settings(config: ConfigDict) -> CaptionSettings:
    """Return the settings of captions that a config gives.

    Raises:
      UserError: If the vocabulary or the table of words cannot be used.
    """
    tokenizer, words = vocabulary.load(config.text.vocabulary), None
    if config.head == "pretraining" and config.words.ranks:
        names = [tokenizer.piece(token) for token in range(tokenizer.vocabulary_size)]
        ranks = read_ranks(Path(config.words.ranks), names)
        groups = read_groups(Path(config.words.groups), len(names)) if config.words.groups else {}
        words = SignificantWords.from_ranks(ranks, config.words.top, groups)
    return CaptionSettings(
        tokenizer, config.text.length, words, config.words.masking, config.words.chosen, config.strict
    )


def most(first: np.ndarray, items: np.ndarray) -> int:
    """Return the largest number of entries of some items, whose first entries are `first` `[M + 1]`."""
    return int(np.diff(first)[items].max(initial=0))


def collate(sources: Sequence[ItemSource], make: MakeArrays | None, *, drawn: bool) -> Collate:
    """Return the function that makes batches: `video`, `size` with buckets, and the arrays of `make`.

    Args:
      sources: Items of all data sets, in the order of the pipeline.
      make: Function that makes the texts of an example; None for videos alone.
      drawn: If true, the examples have the seeds of their random numbers; else the number of an item is its seed.
    """
    starts = np.cumsum([0, *(len(source.items) for source in sources)])

    def run(columns: Columns, plan: BatchPlan) -> Arrays:
        video = np.asarray(columns["video"])
        made = {"video": video}
        if plan.buckets is not None:
            height, width = plan.bucket
            made = {"video": np.ascontiguousarray(video[:, :, :height, :width]), "size": np.asarray(columns["size"])}
        if make is None:
            return made
        texts = []
        for row, number in enumerate(plan.own_numbers.tolist()):
            place = int(np.searchsorted(starts, number, side="right")) - 1
            item = int(sources[place].items[number - starts[place]])
            seed = int(columns["seed"][row]) if drawn else number
            texts.append(make(sources[place], item, np.random.default_rng((seed, TEXT))))
        return made | {name: np.stack([each[name] for each in texts]) for name in texts[0]}

    return run


def train_buckets(sources: Sequence[ItemSource], frames: ConfigDict) -> Buckets | None:
    """Return the heights and widths of training batches of whole frames; None for crops.

    Raises:
      DataError: If an item is larger than the largest of them.
    """
    if frames.form != "whole":
        return None
    shown = _shown(sources, frames)
    sides = tuple(tuple(sorted(frames[key])) for key in ("heights", "widths"))
    for lengths, allowed, key in zip(shown.T, sides, ("heights", "widths"), strict=True):
        if lengths.max(initial=0) > allowed[-1]:
            raise DataError(
                f"config.frames.{key}: the largest is {allowed[-1]}, but with max_size = {frames.max_size} the data "
                f"have {lengths.max()} pixels; add {frames.max_size}"
            )
    return Buckets(shown, sides)


def evaluation_buckets(sources: Sequence[ItemSource], frames: ConfigDict) -> Buckets | None:
    """Return the heights and widths of evaluation batches of whole frames; None for crops.

    Frequent sizes have a bucket of their own; others are rounded up to multiples of 32.
    """
    if frames.form != "whole":
        return None
    shown = _shown(sources, frames)
    return Buckets(shown, tuple(map(_sides, shown.T)))


def _sides(lengths: np.ndarray) -> tuple[int, ...]:
    found, counts = np.unique(lengths, return_counts=True)
    exact = found[counts >= FREQUENT * len(lengths)]
    return tuple(np.unique([*exact, *(-(-found // STEP) * STEP)]).tolist())


def _shown(sources: Sequence[ItemSource], frames: ConfigDict) -> np.ndarray:
    """Return height and width of every item with the longer side `max_size`, pixels, int64 `[N, 2]`."""
    sizes = np.concatenate([source.sizes for source in sources])
    distinct, back = np.unique(sizes, axis=0, return_inverse=True)
    shown = [long_side_size(*size, frames.max_size) for size in distinct.tolist()]
    return np.array(shown, np.int64).reshape(-1, 2)[back.reshape(-1)]
