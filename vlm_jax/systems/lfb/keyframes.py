"""Table of a prepared split's keyframes: all that is known about them except their frames.

It lies beside the shards and has the order of their records, so that metadata decide the buckets of batches, and
thresholds on proposals can change without preparing the data again.
"""

import dataclasses
import functools
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vlm_jax.array_files import read_member
from vlm_jax.errors import DataError
from vlm_jax.files import replacing
from vlm_jax.systems.lfb.annotations import Key, Keyframe, above_threshold, proposals_of

NAME = "keyframes"
"""Name of the data set in the names of its files."""
KIND = "lfb_keyframes"
"""Kind of the data set in its protocol."""
ANNOTATED_PROPOSALS = "annotated_proposals"
"""Statement of the data set that proposals are the annotated people: an evaluation on them is told where people are."""
TRAINING = "train"
"""Split whose records have all frames that training with jitter shows; others have the frames of evaluation only."""


def table_path(directory: str | Path, split: str) -> Path:
    """Return the path of a split's table."""
    return Path(directory) / f"{NAME}-{split}.table.npz"


def annotations_path(directory: str | Path, split: str) -> Path:
    """Return the path of a split's annotations that can be used, by which detections are evaluated."""
    return Path(directory) / f"{NAME}-{split}.annotations.csv"


def excluded_path(directory: str | Path, split: str) -> Path:
    """Return the path of a split's list of excluded keyframes."""
    return Path(directory) / f"{NAME}-{split}.excluded.csv"


@dataclasses.dataclass(frozen=True)
class KeyframeTable:
    """Keyframes of a split, M in number, with their people and proposals.

    Attributes:
      videos: Name of each keyframe's video.
      seconds: Second of each keyframe, int32 `[M]`.
      sizes: Height and width of the stored frames, pixels, int32 `[M, 2]`.
      first_person: Index of each keyframe's first person, and the number of all people, int64 `[M + 1]`.
      boxes: Boxes of all people as shares of the frame, float64 `[P, 4]`.
      labels: Actions of all people by column, bool `[P, A]`.
      people: Ids of all people, int64 `[P]`.
      first_proposal: Index of each keyframe's first proposal, and the number of all proposals, int64 `[M + 1]`.
      proposals: All proposals x1, y1, x2, y2 as shares of the frame, and their scores, float64 `[Q, 5]`.
      training: If true, the records have all frames that training with jitter may show.
    """

    videos: Sequence[str]
    seconds: np.ndarray
    sizes: np.ndarray
    first_person: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    people: np.ndarray
    first_proposal: np.ndarray
    proposals: np.ndarray
    training: bool

    def __len__(self) -> int:
        return len(self.seconds)

    def key(self, number: int) -> Key:
        """Return video and second of a keyframe."""
        return self.videos[number], int(self.seconds[number])

    def truth(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes of a keyframe's people, float64 `[N, 4]`, and their labels, bool `[N, A]`."""
        rows = slice(self.first_person[number], self.first_person[number + 1])
        return self.boxes[rows], self.labels[rows]

    def proposed(self, number: int, threshold: float) -> np.ndarray:
        """Return the proposals of a keyframe with at least this score, or the best one: float64 `[N, 5]`."""
        rows = self.proposals[self.first_proposal[number] : self.first_proposal[number + 1]]
        return rows[above_threshold(rows[:, 4], threshold)]

    @functools.cached_property
    def num_people(self) -> np.ndarray:
        """Return the number of people of each keyframe, int64 `[M]`."""
        return np.diff(self.first_person)

    def num_proposed(self, threshold: float) -> np.ndarray:
        """Return the number of proposals of each keyframe with at least this score, or 1: int64 `[M]`."""
        return np.array([len(self.proposed(number, threshold)) for number in range(len(self))], np.int64)


def make_table(
    keys: Sequence[Key],
    sizes: np.ndarray,
    keyframes: Mapping[Key, Keyframe],
    proposals: Mapping[Key, np.ndarray],
    num_classes: int,
    training: bool,
) -> KeyframeTable:
    """Return the table of keyframes that have records.

    Args:
      keys: Video and second of every record, in order.
      sizes: Height and width of the records' frames, pixels, `[M, 2]`.
      keyframes: People by keyframe; where there are none, the keyframe has no annotation.
      proposals: Proposals by keyframe, `[N, 5]`.
      num_classes: Number of columns of the labels, A.
      training: If true, the records have all frames that training may show.
    """
    nobody = Keyframe("", 0, np.zeros((0, 4)), np.zeros((0, num_classes), bool), np.zeros(0, np.int64))
    found = [keyframes.get(key, nobody) for key in keys]
    proposed = [proposals_of(proposals, key) for key in keys]
    return KeyframeTable(
        videos=[video for video, _ in keys],
        seconds=np.array([second for _, second in keys], np.int32),
        sizes=np.asarray(sizes, np.int32).reshape(-1, 2),
        first_person=np.cumsum([0, *(len(frame.people) for frame in found)]),
        boxes=np.concatenate([nobody.boxes, *(frame.boxes for frame in found)]),
        labels=np.concatenate([nobody.labels, *(frame.labels for frame in found)]),
        people=np.concatenate([nobody.people, *(frame.people for frame in found)]),
        first_proposal=np.cumsum([0, *map(len, proposed)]),
        proposals=np.concatenate([np.zeros((0, 5)), *proposed]),
        training=training,
    )


_ARRAYS = ("seconds", "sizes", "first_person", "boxes", "people", "first_proposal", "proposals")


def write_table(path: Path, table: KeyframeTable) -> None:
    """Write a table; equal tables give equal bytes."""
    arrays = {name: getattr(table, name) for name in _ARRAYS}
    names = list(dict.fromkeys(table.videos))
    number = {name: index for index, name in enumerate(names)}
    arrays["video"] = np.array([number[video] for video in table.videos], np.int32)
    arrays["labels"] = np.packbits(table.labels, axis=1)
    stated = {"videos": names, "num_classes": table.labels.shape[1], "training": table.training}
    arrays["stated"] = np.frombuffer(json.dumps(stated).encode(), np.uint8)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_table(directory: str | Path, split: str) -> KeyframeTable:
    """Return the table of a prepared split.

    Raises:
      DataError: if it is missing or damaged.
    """
    path = table_path(directory, split)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: read_member(archive, f"{name}.npy") for name in (*_ARRAYS, "video", "labels", "stated")}
        stated = json.loads(arrays.pop("stated").tobytes())
        labels = np.unpackbits(arrays.pop("labels"), axis=1, count=int(stated["num_classes"])).astype(bool)
        videos = [stated["videos"][number] for number in arrays.pop("video")]
        table = KeyframeTable(**arrays, labels=labels, videos=videos, training=bool(stated["training"]))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the preparation again with --finalize") from None
    except (zipfile.BadZipFile, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); run the preparation again with --finalize") from None
    if fault := _fault(table):
        raise DataError(f"{path}: damaged ({fault}); run the preparation again with --finalize")
    return table


def _fault(table: KeyframeTable) -> str:
    """Return the first thing that does not fit in a table that was read; '' if all fits."""
    count, people, proposals = len(table), len(table.boxes), len(table.proposals)
    shapes = {
        "videos": (np.shape(table.videos), (count,)),
        "sizes": (table.sizes.shape, (count, 2)),
        "first_person": (table.first_person.shape, (count + 1,)),
        "first_proposal": (table.first_proposal.shape, (count + 1,)),
        "boxes": (table.boxes.shape, (people, 4)),
        "labels": (table.labels.shape[:1], (people,)),
        "people": (table.people.shape, (people,)),
        "proposals": (table.proposals.shape, (proposals, 5)),
    }
    for name, (found, expected) in shapes.items():
        if found != expected:
            return f"{name} has the shape {list(found)}, expected {list(expected)}"
    for name, first, total in (
        ("first_person", table.first_person, people),
        ("first_proposal", table.first_proposal, proposals),
    ):
        if first[0] != 0 or first[-1] != total or (np.diff(first) < 0).any():
            return f"{name} does not ascend from 0 to {total}"
    if (table.sizes < 1).any():
        return "a frame without pixels"
    return ""
