"""Predictor of action detectors: who does what in a film, at every second."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError, DataError
from vlm_jax.extraction import Extractor
from vlm_jax.features import FeatureError
from vlm_jax.predictor import Predictions, Predictor, Request
from vlm_jax.systems.lfb.actions import action_names, columns, ids_of_columns
from vlm_jax.systems.lfb.bank import Bank
from vlm_jax.systems.lfb.boxes import Boxes, boxes_of
from vlm_jax.systems.lfb.detections import Detections, csv_lines
from vlm_jax.systems.lfb.people import WHOLE_FRAME, Action, Detection, people_detector
from vlm_jax.systems.lfb.task import has_bank, make_task
from vlm_jax.train.batches import predict_batches
from vlm_jax.types import Batch, Variables

FILE = "detections.csv"
"""Name of the file with the scores of all actions, in AVA's form."""
BATCH = 8
"""Number of keyframes that are scored at the same time."""

People = Callable[[int, np.ndarray], tuple[np.ndarray, str]]
"""Function from a second and its frame uint8 `[H, W, 3]` to boxes `[N, 5]` and their origin (`Detection.found_by`)."""


class Scored(NamedTuple):
    """People at one second of a film.

    Attributes:
      second: Time from the film's beginning, seconds.
      boxes: x1, y1, x2, y2 as fractions of the frame, and the score of the box, float32 `[N, 5]`.
      found_by: Origin of the boxes (`Detection.found_by`).
      scores: Probabilities of the actions, one column per id, float32 `[N, A]`.
      features: Features of the people as a bank stores them, float32 `[N, C]`.
    """

    second: int
    boxes: np.ndarray
    found_by: str
    scores: np.ndarray
    features: np.ndarray


def make_predictor(config: ConfigDict, variables: Variables, extractor: Extractor) -> "LfbPredictor":
    """Return the predictor of a restored checkpoint."""
    return LfbPredictor(config, variables, extractor)


class LfbPredictor(Predictor):
    """Predictor of the actions of people in films.

    A model with a bank needs the detector that made the bank of its training (`config.bank.source`). It makes a bank of
    the film first.
    """

    def __init__(self, config: ConfigDict, variables: Variables, extractor: Extractor) -> None:
        super().__init__(config, variables)
        self._extractor = extractor
        self._encode = self.compile(make_task(config).encoders["boxes"])
        self.actions = action_names(config.data.actions, config.data.num_classes)

    def detect(
        self,
        video: str | Path,
        boxes: str | Path | Boxes | None = None,
        *,
        detector: str = "opencv",
        seconds: Iterable[int] | None = None,
        threshold: float = 0.3,
        batch_size: int = BATCH,
    ) -> list[Detection]:
        """Return the people of a film and their actions, second by second.

        Args:
          video: Video file of any length, size and rate.
          boxes: Boxes of people: a csv file (`boxes.read_boxes`), or arrays by second, as fractions of the frame,
            `[N, 4]` or, with scores, `[N, 5]`; None to find them.
          detector: Detector that finds the people, 'opencv', or 'frame' for the whole frame. Where it finds nobody, the
            whole frame is one box.
          seconds: Seconds to return; None for all.
          threshold: Smallest probability of an action to return.
          batch_size: Number of keyframes that are scored at the same time; it changes no result.

        Raises:
          VideoError: If the film cannot be used.
          DataError: If the boxes cannot be used, or none of them is at a second of the film.
          FeatureError: If the bank's features cannot be made here.
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold: expected a probability in [0, 1], found {threshold}")
        scored = self.score(video, boxes, detector=detector, seconds=seconds, batch_size=batch_size)
        names = self.actions
        return [detection for row in scored for detection in detections_of(row, names, threshold)]

    def score(
        self,
        video: str | Path,
        boxes: str | Path | Boxes | None = None,
        *,
        detector: str = "opencv",
        seconds: Iterable[int] | None = None,
        batch_size: int = BATCH,
    ) -> list[Scored]:
        """Return the scores of all actions of the people of a film; arguments and errors as in `detect`."""
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, found {batch_size}")
        name, wanted = Path(video).stem, None if seconds is None else frozenset(seconds)
        if isinstance(boxes, str | Path):
            boxes = boxes_of(boxes, name)
        people = _finder(detector) if boxes is None else _given(boxes)
        if not has_bank(self.config):
            found = self.score_people(video, people, wanted, batch_size)
        else:
            found = self._score_with_bank(video, name, people, wanted, batch_size)
        if boxes is not None and not found and wanted is None:
            span = f"{min(boxes)} to {max(boxes)}" if boxes else "none"
            raise DataError(f"{video}: no box is at a second of the film; seconds of the boxes: {span}")
        return found

    def score_people(
        self,
        video: str | Path,
        people: People,
        seconds: frozenset[int] | None = None,
        batch_size: int = BATCH,
        bank: Bank | None = None,
    ) -> list[Scored]:
        """Return scores and features of people, of all seconds of a film or of some, in one pass over the film."""
        kept: list[tuple[int, np.ndarray, str]] = []
        batches = self._batches(video, people, seconds, batch_size, bank, kept)
        found = []
        for index, outputs in predict_batches(self._encode, self.variables, batches):
            for number, scores, features in zip(index, outputs["scores"], outputs["features"], strict=True):
                second, boxes, found_by = kept[number]
                real = slice(len(boxes))
                found.append(Scored(second, boxes, found_by, scores[real], features[real]))
        return found

    def predict(
        self,
        requests: Sequence[Request],
        boxes: str | Path | None = None,
        *,
        detector: str = "opencv",
        threshold: float = 0.3,
    ) -> Predictions:
        """Return the people of films and their actions.

        Args:
          requests: Films; a request's `video` is the path of a file.
          boxes: csv file with the boxes of all films; None to find people with the detector.
          detector: Detector that finds the people.
          threshold: Smallest probability of an action in the lines.

        Returns:
          One line per second: `video`, `second` and `people`, each with `box`, `score`, `found_by` and `actions`. The
          file has the scores of all actions in AVA's form, under the film's name without its ending.
        """
        from vlm_jax.video.decode import VideoError

        names = self.actions
        lines: list[dict[str, Any]] = []
        missing: list[tuple[str, str, str]] = []
        rows = []
        for request in requests:
            video = Path(request["video"])
            try:
                scored = self.score(video, boxes, detector=detector)
            except VideoError as error:
                missing.append((request["video"], error.reason, error.detail))
                continue
            lines += [_line(video.name, row, names, threshold) for row in scored]
            rows += [(video.stem, row.second, row.boxes[:, :4], row.scores) for row in scored]
        ids = ids_of_columns(list(self.actions), self.config.data.num_classes)
        files = {FILE: "".join(csv_lines(Detections.from_rows(rows), action_ids=ids))} if rows else {}
        return Predictions(lines, files, missing)

    def draw(
        self,
        video: str | Path,
        lines: Sequence[Mapping[str, Any]],
        *,
        figure: str | Path | None = None,
        film: str | Path | None = None,
    ) -> None:
        """Draw the lines of `predict` for one film: some of its seconds as a picture, or all of it as a film.

        Raises:
          MissingPackageError: If matplotlib and Pillow are not installed.
        """
        from vlm_jax.systems.lfb import drawing

        found = [detection for line in lines for detection in _of_line(line)]
        if figure:
            drawing.draw_sheet(video, found, figure)
        if film:
            drawing.draw_film(video, found, film)

    def _score_with_bank(
        self, video: str | Path, name: str, people: People, seconds: frozenset[int] | None, batch_size: int
    ) -> list[Scored]:
        """Make a bank of the film with the detector that made the bank of training, then score its people."""
        encoder, window = self._extractor.bank_encoder(), self.config.bank.window
        context = None
        if seconds is not None:
            context = frozenset(t - window // 2 + place for t in seconds for place in range(window))
        found = encoder.score_people(video, people, context, batch_size)
        if not found:
            return []
        features = np.concatenate([row.features for row in found])
        if features.shape[1] != self.config.model.bank_dim:
            raise FeatureError(
                f"{self.config.bank.source.get('checkpoint', 'bank')}: makes features of {features.shape[1]} numbers, "
                f"the model takes {self.config.model.bank_dim} (config.model.bank_dim)"
            )
        names, counts = [name] * len(found), [len(row.boxes) for row in found]
        rows = features.astype(self.config.bank.dtype)
        bank = Bank.from_arrays(names, [row.second for row in found], counts, rows, {}, name=f"bank of {video}")
        known = {row.second: (row.boxes, row.found_by) for row in found}
        nobody = (np.zeros((0, 5), np.float32), "given")
        return self.score_people(video, lambda second, _: known.get(second, nobody), seconds, batch_size, bank)

    def _batches(
        self,
        video: str | Path,
        people: People,
        seconds: frozenset[int] | None,
        batch_size: int,
        bank: Bank | None,
        kept: list[tuple[int, np.ndarray, str]],
    ) -> Iterator[Batch]:
        """Yield batches of the keyframes that have people, and append second, boxes and origin of each to `kept`."""
        from vlm_jax.systems.lfb.film import keyframe_clips

        part: list[np.ndarray] = []
        with closing(keyframe_clips(video, self.config.clips)) as clips:
            for second, clip in clips:
                if seconds is not None and second > max(seconds, default=-1):
                    break
                if seconds is not None and second not in seconds:
                    continue
                boxes, found_by = people(second, clip[len(clip) // 2])
                if len(boxes):
                    kept.append((second, boxes, found_by))
                    part.append(clip)
                if len(part) == batch_size:
                    yield self._batch(Path(video).stem, part, kept, batch_size, bank)
                    part = []
        if part:
            yield self._batch(Path(video).stem, part, kept, batch_size, bank)

    def _batch(
        self,
        name: str,
        clips: Sequence[np.ndarray],
        kept: Sequence[tuple[int, np.ndarray, str]],
        batch_size: int,
        bank: Bank | None,
    ) -> Batch:
        """Return the last keyframes of `kept` as a batch: padded clips, boxes in pixels, and their rows of the bank."""
        data, settings = self.config.data, self.config.bank
        rows = kept[-len(clips) :]
        size = _bucket(max(len(boxes) for _, boxes, _ in rows), data.box_buckets)
        index = len(kept) - len(clips) + np.arange(batch_size)
        batch = {
            "video": np.zeros((batch_size, *clips[0].shape), np.uint8),
            "boxes": np.zeros((batch_size, size, 4), np.float32),
            "mask": (np.arange(batch_size) < len(clips)).astype(np.int32),
            "index": index.astype(np.int32),
        }
        batch["video"][: len(clips)] = clips
        height, width = clips[0].shape[1:3]
        for place, (_, boxes, _) in enumerate(rows):
            batch["boxes"][place, : len(boxes)] = boxes[:, :4] * (width, height, width, height)
        if bank is None:
            return batch
        # The first features of a second are those of its best boxes.
        sampled = [bank.sample(name, second, size, None, settings.window, settings.per_second) for second, _, _ in rows]
        most = _bucket(max(len(features) for features, _ in sampled), data.bank_buckets)
        batch["bank"] = np.zeros((batch_size, most, bank.dim), bank.dtype)
        batch["slots"] = np.full((batch_size, size, settings.window * settings.per_second), -1, np.int32)
        for place, (features, slots) in enumerate(sampled):
            batch["bank"][place, : len(features)], batch["slots"][place] = features, slots
        return batch


def detections_of(row: Scored, names: Mapping[int, str], threshold: float) -> list[Detection]:
    """Return the people of a second, each with the actions whose score reaches the threshold, best first."""
    found = []
    for box, scores in zip(row.boxes, row.scores, strict=True):
        column = columns(list(names), len(scores))
        likely = [Action(name, number, float(scores[column[number]])) for number, name in names.items()]
        likely = sorted((a for a in likely if a.score >= threshold), key=lambda a: -a.score)
        x1, y1, x2, y2, score = map(float, box)
        found.append(Detection(row.second, (x1, y1, x2, y2), likely, score, row.found_by))
    return found


def _line(video: str, row: Scored, names: Mapping[int, str], threshold: float) -> dict[str, Any]:
    """Return a second of a film as JSON values."""
    people = []
    for found in detections_of(row, names, threshold):
        actions = [{**action._asdict(), "score": round(action.score, 4)} for action in found.actions]
        box = [round(edge, 4) for edge in found.box]
        people.append({"box": box, "score": round(found.score, 4), "found_by": found.found_by, "actions": actions})
    return {"video": video, "second": row.second, "people": people}


def _of_line(line: Mapping[str, Any]) -> Iterator[Detection]:
    """Yield the people of a line."""
    for person in line["people"]:
        actions = [Action(**action) for action in person["actions"]]
        yield Detection(line["second"], tuple(person["box"]), actions, person["score"], person["found_by"])


def _finder(name: str) -> People:
    """Return a function that finds people with a detector, or takes the whole frame if it finds nobody."""
    find = people_detector(name)

    def people(second: int, frame: np.ndarray) -> tuple[np.ndarray, str]:
        boxes = find(frame)
        return (boxes, name) if len(boxes) else (WHOLE_FRAME, "frame")

    return people


def _given(boxes: Boxes) -> People:
    """Return a function that looks up the boxes of a second.

    Raises:
      DataError: If they are not boxes.
    """
    known = {int(second): _with_score(second, rows) for second, rows in boxes.items()}
    nobody = np.zeros((0, 5), np.float32)
    return lambda second, frame: (known.get(second, nobody), "given")


def _with_score(second: int, rows: Any) -> np.ndarray:
    """Return boxes `[N, 5]`, best first, from `[N, 4]` or `[N, 5]`."""
    rows = np.asarray(rows, np.float32)
    rows = rows.reshape(0, 5) if not rows.size else rows
    if rows.ndim != 2 or rows.shape[1] not in (4, 5):
        raise DataError(
            f"boxes of second {second}: found an array of shape {list(rows.shape)}, expected [N, 4] or [N, 5]"
        )
    corners = rows[:, :4]
    if not (np.isfinite(rows).all() and (corners >= 0).all() and (corners <= 1).all()):
        raise DataError(
            f"boxes of second {second}: expected fractions of the frame in [0, 1], found {corners.tolist()}"
        )
    if not (corners[:, :2] < corners[:, 2:]).all():
        raise DataError(f"boxes of second {second}: expected x1 < x2 and y1 < y2, found {corners.tolist()}")
    if rows.shape[1] == 4:
        return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
    return rows[np.argsort(-rows[:, 4], kind="stable")]


def _bucket(count: int, buckets: Sequence[int]) -> int:
    """Return the smallest bucket that holds `count`, or the next power of two if none does."""
    return min((size for size in buckets if size >= count), default=1 << (count - 1).bit_length())
