"""Batches of clips: boxes, labels and bank rows, padded to the sizes of a bucket (numpy only).

Letters beyond those of `vlm_jax/types.py`: N boxes of a clip, S bank rows of a clip, W seconds of the window, K slots
per second, A columns of the classifier.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vlm_jax.data.pipeline import BatchPlan, Buckets, Collate, Columns
from vlm_jax.errors import DataError
from vlm_jax.systems.lfb.annotations import name_of
from vlm_jax.systems.lfb.augment import View, resized_size, view_boxes, whole_view
from vlm_jax.systems.lfb.keyframes import KeyframeTable
from vlm_jax.systems.lfb.targets import Matching, positives

STEP = 32
"""Heights and widths of evaluation batches are multiples of this, pixels."""


class FeatureBank(Protocol):
    """Bank of long-term features (`vlm_jax.systems.lfb.bank.Bank`).

    Attributes:
      dim: Width of a row, C.
      dtype: Type of the rows.
    """

    dim: int
    dtype: np.dtype

    def rows_in_window(self, video: str, second: int, window: int, per_second: int | None = None) -> int:
        """Return the number of rows in the window of a keyframe, of at most `per_second` rows per second."""

    def sample(
        self, video: str, second: int, num_boxes: int, rng: np.random.Generator | None, window: int, per_second: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a keyframe's window `[S, C]`, and the row in every slot of every box, `[N, W * K]`."""


class Memory(NamedTuple):
    """Bank and the window that clips see of it.

    Attributes:
      bank: Features of people.
      window: Seconds around the keyframe, W.
      per_second: Slots per second, K.
      buckets: Numbers of rows that clips are padded to, ascending.
    """

    bank: FeatureBank
    window: int
    per_second: int
    buckets: tuple[int, ...]

    def lengths(self, table: KeyframeTable, *, drawn: bool) -> np.ndarray:
        """Return the number of rows that every keyframe sees, int64 `[M]`: all of its window if slots are `drawn`."""
        keys, most = map(table.key, range(len(table))), None if drawn else self.per_second
        return np.array([self.bank.rows_in_window(*key, self.window, most) for key in keys], np.int64)


def train_buckets(
    table: KeyframeTable, threshold: float, matching: Matching, box_buckets: Sequence[int], memory: Memory | None
) -> Buckets:
    """Return the buckets of training batches: number of boxes and, with a bank, number of bank rows.

    A crop decides which proposals match, so every proposal counts.

    Raises:
      DataError: If a keyframe needs more than the largest size.
    """
    boxes = np.minimum(table.num_people + table.num_proposed(threshold), matching.max_boxes)
    lengths, sizes = [boxes], [tuple(sorted(box_buckets))]
    _check_largest("config.data.box_buckets", "boxes", table, boxes, sizes[0][-1])
    if memory is not None:
        lengths.append(memory.lengths(table, drawn=True))
        sizes.append(tuple(sorted(memory.buckets)))
        _check_largest("config.data.bank_buckets", "rows of the bank in its window", table, lengths[1], sizes[1][-1])
    return Buckets(np.stack(lengths, 1), tuple(sizes))


def _check_largest(key: str, what: str, table: KeyframeTable, lengths: np.ndarray, largest: int) -> None:
    """Check that the largest bucket of a key holds every keyframe.

    Raises:
      DataError: If it does not.
    """
    if lengths.max(initial=0) > largest:
        longest = int(lengths.argmax())
        raise DataError(
            f"{key}: the largest is {largest}, but keyframe {name_of(table.key(longest))} has {lengths[longest]} "
            f"{what}; add {lengths[longest]} or more"
        )


def evaluation_buckets(
    table: KeyframeTable,
    threshold: float,
    short_side: int,
    box_buckets: Sequence[int],
    memory: Memory | None,
    *,
    drawn: bool,
) -> Buckets:
    """Return the buckets of evaluation batches: height, width, number of boxes and, with a bank, of bank rows.

    The last sizes are doubled until everything fits. `drawn` is true if the slots of the bank are drawn at random.
    """
    shown = np.array([resized_size(*size, short_side) for size in table.sizes.tolist()], np.int64).reshape(-1, 2)
    sides = -(-shown // STEP) * STEP
    boxes = table.num_proposed(threshold)
    lengths, sizes = [*sides.T, boxes], [*(tuple(np.unique(side).tolist()) for side in sides.T)]
    sizes.append(_doubled(box_buckets, boxes))
    if memory is not None:
        lengths.append(memory.lengths(table, drawn=drawn))
        sizes.append(_doubled(memory.buckets, lengths[-1]))
    return Buckets(np.stack(lengths, 1), tuple(sizes))


def _doubled(sizes: Sequence[int], lengths: np.ndarray) -> tuple[int, ...]:
    found = sorted(sizes)
    while found[-1] < lengths.max(initial=0):
        found.append(2 * found[-1])
    return tuple(found)


def collate_training(table: KeyframeTable, threshold: float, matching: Matching, memory: Memory | None) -> Collate:
    """Return the function that makes training batches.

    Examples have `video` `[T, S, S, 3]`, `second`, `view` `[8]` (the fields of `View`) and `seed`. A batch has `video`
    uint8 `[B, T, S, S, 3]`, `boxes` float32 `[B, N, 4]`, `box_mask` bool `[B, N]` and `labels` bool `[B, N, A]`;
    with a bank also `bank` `[B, S, C]` and `slots` int32 `[B, N, W K]`.
    """

    def collate(columns: Columns, plan: BatchPlan) -> dict[str, np.ndarray]:
        check_seconds(table, columns, plan)
        boxes, labels, generators = [], [], []
        for number, fields, seed in zip(plan.own_numbers.tolist(), columns["view"], columns["seed"], strict=True):
            view, (height, width) = View(*map(int, fields)), table.sizes[number].tolist()
            truth, actions = table.truth(number)
            proposed = table.proposed(number, threshold)[:, :4]
            rng = np.random.default_rng((int(seed), 1))
            truth, proposed = (view_boxes(part, height, width, view) for part in (truth, proposed))
            chosen, chosen_labels = positives(truth, actions, proposed, matching, rng)
            boxes.append(chosen)
            labels.append(chosen_labels)
            generators.append(rng)
        count = plan.bucket[0]
        made = {"video": np.asarray(columns["video"]), **pad_boxes(boxes, count)}
        made["labels"] = _padded(labels, count, 0, bool)
        if memory is not None:
            made |= join_bank(table, memory, plan, [len(part) for part in boxes], generators, count, plan.bucket[1])
        return made

    return collate


def collate_evaluation(
    table: KeyframeTable, threshold: float, short_side: int, memory: Memory | None, seed: int | None
) -> Collate:
    """Return the function that makes evaluation batches.

    Examples have `video`, padded to any size, and `second`. A batch has `video` uint8 `[B, T, H, W, 3]`, `size` int32
    `[B, 2]` (height and width without padding), `boxes` float32 `[B, N, 4]` and `box_mask` bool `[B, N]`; with a
    bank also `bank` `[B, S, C]` and `slots` int32 `[B, N, W K]`.

    Args:
      table: Keyframes.
      threshold: Smallest score of a proposal; a keyframe's best proposal is always kept.
      short_side: Shorter side of the frames, pixels.
      memory: Bank, if the model has one.
      seed: Seed of random slots; None takes the first rows of every second.
    """

    def collate(columns: Columns, plan: BatchPlan) -> dict[str, np.ndarray]:
        check_seconds(table, columns, plan)
        height, width, count, *rows = plan.bucket
        boxes, sizes, generators = [], [], []
        for number in plan.own_numbers.tolist():
            whole = table.sizes[number].tolist()
            view = whole_view(*whole, short_side)
            boxes.append(view_boxes(table.proposed(number, threshold)[:, :4], *whole, view))
            sizes.append((view.rows, view.columns))
            generators.append(None if seed is None else np.random.default_rng((seed, number)))
        video = np.ascontiguousarray(np.asarray(columns["video"])[:, :, :height, :width])
        made = {"video": video, "size": np.array(sizes, np.int32), **pad_boxes(boxes, count)}
        if memory is not None:
            made |= join_bank(table, memory, plan, [len(part) for part in boxes], generators, count, rows[0])
        return made

    return collate


def check_seconds(table: KeyframeTable, columns: Columns, plan: BatchPlan) -> None:
    """Check that the records of a batch are the keyframes that the table has at their places.

    Raises:
      DataError: naming the first keyframe that differs.
    """
    for number, second in zip(plan.own_numbers.tolist(), columns["second"], strict=True):
        if table.seconds[number] != second:
            raise DataError(
                f"data: record {number} shows second {second}, its table has {name_of(table.key(number))}; run the "
                "preparation again with --finalize"
            )


def join_bank(
    table: KeyframeTable,
    memory: Memory,
    plan: BatchPlan,
    counts: Sequence[int],
    generators: Sequence[np.random.Generator | None],
    max_boxes: int,
    max_rows: int,
) -> dict[str, np.ndarray]:
    """Return `bank` `[B, S, C]` and `slots` int32 `[B, N, W K]` of the clips of a batch.

    Args:
      table: Keyframes.
      memory: Bank and its window.
      plan: Plan of the batch.
      counts: Number of boxes of each clip.
      generators: Random numbers of each clip; None takes the first rows of every second.
      max_boxes: Number of boxes that clips are padded to, N.
      max_rows: Number of bank rows that clips are padded to, S.
    """
    sampled = [
        memory.bank.sample(*table.key(number), count, rng, memory.window, memory.per_second)
        for number, count, rng in zip(plan.own_numbers.tolist(), counts, generators, strict=True)
    ]
    rows, slots = zip(*sampled, strict=True)
    return pad_bank(rows, slots, max_boxes, max_rows)


def pad_boxes(boxes: Sequence[np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Return the boxes of clips, `[n, 4]` each, as `boxes` float32 `[B, N, 4]` and `box_mask` bool `[B, N]`."""
    mask = np.arange(count) < np.array([[len(part)] for part in boxes])
    return {"boxes": _padded(boxes, count, 0, np.float32), "box_mask": mask}


def pad_bank(
    rows: Sequence[np.ndarray], slots: Sequence[np.ndarray], max_boxes: int, max_rows: int
) -> dict[str, np.ndarray]:
    """Return the bank rows of clips, `[s, C]` each, and their slots, `[n, W K]` each, as `bank` and `slots`."""
    return {"bank": _padded(rows, max_rows, 0, rows[0].dtype), "slots": _padded(slots, max_boxes, -1, np.int32)}


def _padded(parts: Sequence[np.ndarray], count: int, fill: int, dtype: np.dtype | type) -> np.ndarray:
    """Pad arrays `[n, ...]` to `[B, count, ...]`."""
    out = np.full((len(parts), count, *parts[0].shape[1:]), fill, dtype)
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out


MakeView = Callable[[np.random.Generator, int, int], View]
"""Function from random numbers, height and width of a frame (pixels) to the view of a clip."""
