"""Table of a prepared split: its records and items with captions, labels and options; all but the frames (numpy only).

It lies beside the shards in the order of their records, so that metadata decide the sizes of batches, and several
questions share one record. Texts are stored as one array of bytes, because there may be millions of them.
"""

import dataclasses
import functools
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from vlm_jax.array_files import read_member
from vlm_jax.errors import DataError
from vlm_jax.files import replacing
from vlm_jax.systems.snps3.annotations import Item, Part, number_texts
from vlm_jax.systems.snps3.answers import labels_of

NAME = "items"
"""Name of the data set in the names of its files."""
KIND = "snps3_items"
"""Kind of the data set in its protocol."""


def table_path(directory: str | Path, split: str) -> Path:
    """Return the path of a split's table."""
    return Path(directory) / f"{NAME}-{split}.table.npz"


class Texts(Sequence[str]):
    """Immutable sequence of texts in two arrays.

    Args:
      content: UTF-8 bytes of all texts, uint8 `[S]`.
      first: First byte of each text, and the number of all bytes, int64 `[N + 1]`.
    """

    def __init__(self, content: np.ndarray, first: np.ndarray) -> None:
        self.content, self.first = content, first

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Return the sequence of some texts."""
        encoded = [text.encode(errors="replace") for text in texts]
        return cls(np.frombuffer(b"".join(encoded), np.uint8), _starts(map(len, encoded)))

    def __len__(self) -> int:
        return len(self.first) - 1

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        place = range(len(self))[number]
        return self.content[self.first[place] : self.first[place + 1]].tobytes().decode()


@dataclasses.dataclass(frozen=True)
class ItemTable:
    """Records of a split, R in number, and its items, M in number.

    Attributes:
      videos: Name of each record's video or image, `[R]`.
      video_numbers: Number of each record's video, int64 `[R]`; parts of one video share it.
      spans: Start and end of each record's part, seconds, float64 `[R, 2]`; NaN for a whole video or an image.
      sizes: Height and width of each record's frames, pixels, int32 `[R, 2]`.
      records: Record of each item, ascending, int64 `[M]`.
      qids: Name of each question, or the key of an item's first caption, `[M]`.
      texts: Distinct captions, questions or titles, by first appearance.
      caption_texts: Text of each caption, int64 `[P]`; those of an item follow one another.
      first_caption: First caption of each item, and the number of all captions, int64 `[M + 1]`.
      label_values: Labels of all items, int64; -1 for an answer outside of the vocabulary.
      first_label: First label of each item, and the number of all labels, int64 `[M + 1]`.
      answers: Answer of each question as a text, '' if unknown, `[M]`.
      option_texts: Options of all items.
      first_option: First option of each item, and the number of all options, int64 `[M + 1]`.
    """

    videos: Texts
    video_numbers: np.ndarray
    spans: np.ndarray
    sizes: np.ndarray
    records: np.ndarray
    qids: Texts
    texts: Texts
    caption_texts: np.ndarray
    first_caption: np.ndarray
    label_values: np.ndarray
    first_label: np.ndarray
    answers: Texts
    option_texts: Texts
    first_option: np.ndarray

    def __len__(self) -> int:
        return len(self.records)

    def part(self, item: int) -> Part:
        """Return name, start and end (seconds, or None) of the part of a video that an item shows."""
        record = int(self.records[item])
        start, end = (None if np.isnan(time) else float(time) for time in self.spans[record])
        return self.videos[record], start, end

    def captions(self, item: int) -> list[str]:
        """Return the captions of an item, of which one is drawn per visit, or its question."""
        rows = self.caption_texts[self.first_caption[item] : self.first_caption[item + 1]]
        return [self.texts[number] for number in rows.tolist()]

    def labels(self, item: int) -> list[int]:
        """Return the labels of an item; -1 for an answer outside of the vocabulary."""
        return self.label_values[self.first_label[item] : self.first_label[item + 1]].tolist()

    def options(self, item: int) -> list[str]:
        """Return the options of an item."""
        return self.option_texts[int(self.first_option[item]) : int(self.first_option[item + 1])]

    @functools.cached_property
    def best_labels(self) -> np.ndarray:
        """Return the largest label of each item, -1 if it has none within the vocabulary, int64 `[M]`."""
        found = np.full(len(self), -1, np.int64)
        np.maximum.at(found, np.repeat(np.arange(len(self)), np.diff(self.first_label)), self.label_values)
        return found

    @property
    def pair_texts(self) -> np.ndarray:
        """Return the number of the text of every pair of a text and a video, int64 `[P]`."""
        return self.caption_texts

    @property
    def pair_videos(self) -> np.ndarray:
        """Return the record of the video of every pair, int64 `[P]`."""
        return np.repeat(self.records, np.diff(self.first_caption))


def make_table(
    items: Sequence[Item], kept: Mapping[Part, tuple[int, int, int]], vocabulary: Sequence[str], num_answers: int
) -> ItemTable:
    """Return the table of the items that have records.

    Args:
      items: All items, in order.
      kept: Number of the record, height and width of its frames (pixels), by part; numbers begin at 0 and have no gaps.
      vocabulary: Answers by label; empty if all answers are labels, as numbers or texts.
      num_answers: Number of labels; larger ones are outside of the vocabulary. 0 if there is no limit.
    """
    found = sorted((item for item in items if item.part in kept), key=lambda item: kept[item.part][0])
    lines = [line for item in found for line in item.lines]
    parts = {number: part for part, (number, _, _) in kept.items()}
    texts = number_texts(lines)
    labels = [_labels(item, vocabulary, num_answers) for item in found]
    numbers = {video: number for number, video in enumerate(dict.fromkeys(parts[n][0] for n in range(len(kept))))}
    nan = float("nan")
    spans = [[nan if time is None else time for time in parts[number][1:]] for number in range(len(kept))]
    options = [item.lines[0].options for item in found]
    return ItemTable(
        videos=Texts.of(parts[number][0] for number in range(len(kept))),
        video_numbers=np.array([numbers[parts[number][0]] for number in range(len(kept))], np.int64),
        spans=np.array(spans, np.float64).reshape(-1, 2),
        sizes=np.array([kept[parts[number]][1:] for number in range(len(kept))], np.int32).reshape(-1, 2),
        records=np.array([kept[item.part][0] for item in found], np.int64),
        qids=Texts.of(str(item.lines[0].key) for item in found),
        texts=Texts.of(texts),
        caption_texts=np.array([texts[line.text] for line in lines], np.int64),
        first_caption=_starts(len(item.lines) for item in found),
        label_values=np.array([label for own in labels for label in own], np.int64),
        first_label=_starts(map(len, labels)),
        answers=Texts.of(_answer(item, vocabulary) for item in found),
        option_texts=Texts.of(option for own in options for option in own),
        first_option=_starts(map(len, options)),
    )


def _starts(lengths: Iterable[int]) -> np.ndarray:
    return np.cumsum(np.array([0, *lengths], np.int64))


def _labels(item: Item, vocabulary: Sequence[str], num_answers: int) -> list[int]:
    labels = [
        labels_of([answer], vocabulary)[0] if isinstance(answer, str) and vocabulary else int(answer)
        for answer in item.lines[0].answers
    ]
    return [label if not num_answers or label < num_answers else -1 for label in labels]


def _answer(item: Item, vocabulary: Sequence[str]) -> str:
    line = item.lines[0]
    texts: Sequence[str] = line.options or vocabulary
    return ", ".join(
        texts[answer] if isinstance(answer, int) and answer < len(texts) else str(answer) for answer in line.answers
    )


_ARRAYS = (
    *("video_numbers", "spans", "sizes", "records", "caption_texts", "first_caption", "label_values", "first_label"),
    "first_option",
)
_TEXTS = ("videos", "qids", "texts", "answers", "option_texts")


def write_table(path: Path, table: ItemTable) -> None:
    """Write a table; equal tables give equal bytes."""
    arrays = {name: getattr(table, name) for name in _ARRAYS}
    for name in _TEXTS:
        arrays[f"{name}_content"], arrays[f"{name}_first"] = getattr(table, name).content, getattr(table, name).first
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_table(directory: str | Path, split: str) -> ItemTable:
    """Return the table of a prepared split.

    Raises:
      DataError: If it is missing or damaged.
    """
    path = table_path(directory, split)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: read_member(archive, f"{name}.npy") for name in _ARRAYS}
            texts = {
                name: Texts(*(read_member(archive, f"{name}_{part}.npy") for part in ("content", "first")))
                for name in _TEXTS
            }
        table = ItemTable(**arrays, **texts)
        fault = _fault(table)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the preparation again with --finalize") from None
    except (zipfile.BadZipFile, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); run the preparation again with --finalize") from None
    if fault:
        raise DataError(f"{path}: damaged ({fault}); run the preparation again with --finalize")
    return table


def _fault(table: ItemTable) -> str:
    """Return the first thing that does not fit in a table that was read; '' if all fits."""
    records, items = len(table.video_numbers), len(table.records)
    lists = {name: (getattr(table, name).first, len(getattr(table, name).content)) for name in _TEXTS}
    lists |= {
        "first_caption": (table.first_caption, len(table.caption_texts)),
        "first_label": (table.first_label, len(table.label_values)),
        "first_option": (table.first_option, len(table.option_texts)),
    }
    for name, (first, total) in lists.items():
        if first.ndim != 1 or not len(first) or first[0] != 0 or first[-1] != total or (np.diff(first) < 0).any():
            return f"{name} does not ascend from 0 to {total}"
        if first.dtype != np.int64:
            return f"{name} is {first.dtype}, expected int64"
    expected = dict.fromkeys(("videos", "spans", "sizes"), records) | dict.fromkeys(("qids", "answers"), items)
    expected |= dict.fromkeys(("first_caption", "first_label", "first_option"), items + 1)
    for name, length in expected.items():
        if len(getattr(table, name)) != length:
            return f"{name} has {len(getattr(table, name))} entries, expected {length}"
    if table.sizes.shape != (records, 2) or table.spans.shape != (records, 2):
        return "sizes or spans are no pairs"
    if (table.sizes < 1).any():
        return "a frame without pixels"
    if items and (table.records.min() < 0 or table.records.max() >= records or (np.diff(table.records) < 0).any()):
        return "items are not in the order of their records"
    if (np.diff(table.first_caption) < 1).any():
        return "an item without a text"
    if len(table.caption_texts) and not 0 <= table.caption_texts.min() <= table.caption_texts.max() < len(table.texts):
        return "a caption without a text"
    return ""
