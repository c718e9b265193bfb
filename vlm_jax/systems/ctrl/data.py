"""Records of CTRL: a data set of windows, one record per video, and one of sentences, one record per sentence."""

from collections.abc import Container

import numpy as np
import tensorflow_datasets as tfds

from vlm_jax.data.feature_store import read_records
from vlm_jax.data.protocol import check_protocol
from vlm_jax.data.record_examples import Split
from vlm_jax.systems.ctrl import windows
from vlm_jax.systems.ctrl.samples import MomentData, SampleSpec, Sentence, Video


def _tensor(*shape: int | None, dtype: type = np.float64) -> tfds.features.Tensor:
    # As bytes: TFDS has no other encoding for several unknown sizes, nor one that keeps float64.
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


WINDOW_FEATURES = tfds.features.FeaturesDict(
    {
        "video": tfds.features.Text(),
        "fps": _tensor(),
        "num_frames": _tensor(dtype=np.int64),
        "spans": _tensor(None, 2, dtype=np.int64),
        "features": _tensor(None, None, dtype=np.float32),
    }
)
"""Features of a video's record: `spans` `[W, 2]`, first and last frame of its windows in the order of their file names,
and `features` `[W, C]`; `fps` and `num_frames` are 0 if they are not known."""
QUERY_FEATURES = tfds.features.FeaturesDict(
    {"qid": tfds.features.Text(), "video": tfds.features.Text(), "text": tfds.features.Text()}
    | {"vector": _tensor(None, dtype=np.float32), "span": _tensor(2), "fps": _tensor()}
)
"""Features of a sentence's record: `vector` `[S]`, its embedding, and `span` `[2]`, first and last frame of its moment;
`fps` is 0 if it is not known."""
WINDOWS = "windows"
"""Name of the split that holds all windows of a data set."""


def load(window_directory: str, query_directory: str, split: str, spec: SampleSpec) -> MomentData:
    """Read the sentences of a split and the windows of their videos.

    Raises:
      DataError: If a data set is missing or damaged, or was made for other sizes or from other features.
    """
    queries = load_queries(query_directory, split, spec)
    return MomentData(load_windows(window_directory, {query.video for query in queries}, spec), queries)


def load_queries(directory: str, split: str, spec: SampleSpec) -> list[Sentence]:
    """Read the sentences of a split; raises DataError as `load` does."""
    found = Split(directory, split)
    wanted = {"kind": "ctrl_queries", "sentence_dim": spec.sentence_dim, "text_source": spec.text_source}
    check_protocol(directory, found.protocol, wanted)
    return [
        Sentence(
            record["qid"].decode(),
            record["video"].decode(),
            record["text"].decode(),
            record["span"],
            float(record["fps"]),
            record["vector"],
        )
        for record in read_records(found, QUERY_FEATURES)
    ]


def load_windows(directory: str, videos: Container[str], spec: SampleSpec) -> list[Video]:
    """Read the windows of those `videos` that have any, sorted by name; raises DataError as `load` does."""
    found = Split(directory, WINDOWS)
    wanted = {"kind": "ctrl_windows", "feature_dim": spec.visual_dim // 3, "video_source": spec.video_source}
    check_protocol(directory, found.protocol, wanted)
    kept = []
    for record in read_records(found, WINDOW_FEATURES):
        name, spans = record["video"].decode(), record["spans"]
        if name in videos and len(spans):
            sides = windows.context(spans, spec.context_num, spec.context_size, spec.context)
            count = int(record["num_frames"])
            kept.append(Video(name, float(record["fps"]), spans, record["features"], *sides, count))
    return sorted(kept, key=lambda video: video.name)
