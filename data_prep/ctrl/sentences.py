"""Records of CTRL's sentences, from released files of vectors or from annotations with vectors of our own."""

import functools
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax import annotations
from vlm_jax.annotations import AnnotationError, Annotations
from vlm_jax.data.records import Record, Skip
from vlm_jax.errors import DataError
from vlm_jax.features import FeatureError
from vlm_jax.interop.rules import ConversionError
from vlm_jax.interop.torch_files import TorchFileError, load_pickle
from vlm_jax.systems.ctrl.interop import ClipSentences, clip_sentences
from vlm_jax.systems.ctrl.windows import parse, window_files
from vlm_jax.text_features import TextVectors

PICKLE = "pickle"
"""Released form: a pickled list of [VIDEO_START_END, [vector, ...]]."""
FORMS = (PICKLE, *annotations.FORMS)
VECTORS = "vectors"
"""Name of the file or folder of vectors in `Skip.files`."""


def clip_records(items: Sequence[Sequence[int]], *, path: Path, dim: int, fps: float) -> Iterator[Record | Skip]:
    """Yield a record for every sentence of a released file, or the reason why it gives none.

    Args:
      items: Index of a moment in the file, and of one of its sentences.
      path: Path of the file.
      dim: Width of a vector; longer vectors are cut to it.
      fps: Frames per second in which the moments are counted; 0 where unknown.
    """
    clips, group = read_sentences(path, dim), 0
    for clip, number in items:
        entry, span = clips[clip], parse(clips[clip].name)
        name = f"{entry.name}#{number}"
        if span is None:
            yield Skip(name, "not named like a moment")
        elif not len(entry.vectors):
            yield Skip(entry.name, "no sentences")
        else:
            place = {"qid": name, "video": span.video, "text": "", "span": np.array(span[1:], np.float64)}
            yield Record({**place, "fps": np.float64(fps), "vector": entry.vectors[number]}, group)
            group += 1


@functools.lru_cache(maxsize=1)
def read_sentences(path: Path, dim: int) -> list[ClipSentences]:
    """Read the moments of a file of sentence vectors.

    Raises:
      DataError: for a file that cannot be read or holds something else.
    """
    try:
        return clip_sentences(load_pickle(path, "latin1"), dim)
    except (TorchFileError, ConversionError) as error:
        text = str(error).replace("not a torch file", "not a pickle")
        raise DataError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def read_annotations(path: Path, form: str, durations: Path | None) -> Annotations:
    """Read annotations as `annotations.read` does, with its errors as DataError."""
    try:
        return annotations.read(path, form, durations)
    except AnnotationError as error:
        raise DataError(str(error)) from None


@functools.lru_cache(maxsize=1)
def read_vectors(path: Path) -> TextVectors:
    """Open `TextVectors`, with their errors as DataError."""
    try:
        return TextVectors(path)
    except FeatureError as error:
        raise DataError(str(error)) from None


def annotation_items(found: Annotations, fps: float) -> list[dict[str, Any]]:
    """Return one item for every pair of a sentence and a moment (in frames), and for every sentence that is left out.

    Args:
      found: Annotations.
      fps: Frames per second of the windows; 0 takes the rate that the annotations state.

    Raises:
      DataError: if neither states a rate.
    """
    items: list[dict[str, Any]] = [{"fault": list(fault)} for fault in found.faults]
    for query in found.queries:
        rate, frames = query.fps, query.frames
        if fps:
            rate, frames = fps, tuple((start * fps, end * fps) for start, end in query.spans)
        if not rate:
            raise DataError(f"{query.qid}: its times are in seconds, windows are in frames; give --fps")
        if not frames:
            items.append({"fault": [query.qid, "no moment is given", ""]})
        items += [
            {"qid": query.qid, "video": query.video, "text": query.query, "span": list(span), "fps": rate}
            for span in frames
        ]
    return items


def annotation_records(items: Sequence[Mapping[str, Any]], *, path: Path, dim: int) -> Iterator[Record | Skip]:
    """Yield a record for every item of `annotation_items`, or the reason why it gives none.

    Args:
      items: Items.
      path: Path of the vectors by qid.
      dim: Width of a vector.
    """
    vectors, group = read_vectors(path), 0
    for item in items:
        if "fault" in item:
            yield Skip(*item["fault"])
            continue
        vector = vector_of(vectors, item["qid"], dim)
        if isinstance(vector, Skip):
            yield vector
            continue
        numbers = {"span": np.array(item["span"], np.float64), "fps": np.float64(item["fps"]), "vector": vector}
        yield Record({**{name: item[name] for name in ("qid", "video", "text")}, **numbers}, group)
        group += 1


def vector_of(vectors: TextVectors, qid: str, dim: int) -> np.ndarray | Skip:
    """Return the vector of a sentence, float32 `[dim]`, or the reason why there is none."""
    files = (f"{VECTORS}/{qid}.npy" if vectors.path.is_dir() else VECTORS,)
    if qid not in vectors:
        return Skip(qid, "no vector", f"not in {vectors.path}", files=files)
    try:
        vector = np.asarray(vectors[qid], np.float32)
    except (FeatureError, ValueError) as error:
        return Skip(qid, "bad vector", str(error), files=files)
    if vector.shape != (dim,) or not np.isfinite(vector).all():
        return Skip(qid, "bad vector", f"shape {list(vector.shape)}, expected [{dim}] finite numbers")
    return vector


def vector_dim(vectors: TextVectors, items: Sequence[Mapping[str, Any]]) -> int:
    """Return S, the width of the first vector that belongs to an item.

    Raises:
      DataError: if no item has a vector, or if there is one vector per word.
    """
    name = next((item["qid"] for item in items if item.get("qid") in vectors), None)
    if name is None:
        raise DataError(f"{vectors.path}: has no vector of any sentence; its names are such as {next(iter(vectors))!r}")
    try:
        vector = vectors[name]
    except FeatureError as error:
        raise DataError(str(error)) from None
    if vector.ndim != 1:
        raise DataError(f"{vectors.path}: {name}: found {list(vector.shape)}, expected one vector a sentence")
    return len(vector)


def write_demo(sentences: Path, features: Path, output: Path, dim: int) -> tuple[str, int, int]:
    """Write the first video of a released file as a data set of its own (`gen_infer.py` of the reference).

    The first sentence of each of its moments is written to `infer_clip-sen.pkl`, and the video's windows are copied to
    `infer_feat/`.

    Returns:
      Name of the video, number of moments, and number of windows.

    Raises:
      DataError: if the first entry is not named like a moment, or its video has no windows or no sentences.
    """
    clips = read_sentences(sentences, dim)
    first = parse(clips[0].name) if clips else None
    if first is None:
        raise DataError(f"{sentences}: its first entry is not named like a moment, VIDEO_START_END")
    chosen = [clip for clip in clips if len(clip.vectors) and (span := parse(clip.name)) and span.video == first.video]
    try:
        found = window_files(path.name for path in features.iterdir())
    except OSError as error:
        raise DataError(f"{features}: {error.strerror}") from None
    names = [name for name, video in zip(found.names, found.videos, strict=True) if video == first.video]
    if not names or not chosen:
        raise DataError(f"{features}: {len(names)} windows, and {len(chosen)} sentences of {first.video}")
    (output / "infer_feat").mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(features / name, output / "infer_feat" / name)
    # The reference reads names as bytes, in pickle protocol 2.
    content = [[clip.name.encode("latin1"), [clip.vectors[0]]] for clip in chosen]
    (output / "infer_clip-sen.pkl").write_bytes(pickle.dumps(content, 2))
    return first.video, len(chosen), len(names)


def as_annotations(clips: Sequence[ClipSentences]) -> Annotations:
    """Return a released file's sentences as annotations without text; entries that are no moments become faults."""
    queries, faults = [], []
    for clip in clips:
        span = parse(clip.name)
        if span is None or span.end <= span.start or not len(clip.vectors):
            reason = "not an annotation" if span is None else "zero length" if len(clip.vectors) else "no vector"
            faults.append(annotations.Fault(clip.name, reason, f"{len(clip.vectors)} sentences"))
            continue
        queries += [annotations.Query(f"{clip.name}#{n}", span.video, "") for n in range(len(clip.vectors))]
    return Annotations(queries, faults)
