"""Records of GroundNLQ: a data set of clips, one record per clip, and one of questions, one record per question."""

import tensorflow_datasets as tfds

from vlm_jax.data.feature_store import read_records, tensor
from vlm_jax.data.protocol import check_protocol
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.systems.groundnlq.samples import Question, SampleSpec

KIND = "nlq_queries"
QUERY_KINDS = ("nlq", "narration", "nlq_narration")
"""Kinds of questions. The reference's script writes the last one; its loader reads the other two."""


def query_features(dtype: str = "float32") -> tfds.features.FeaturesDict:
    """Return the features of a question's record.

    `duration` is the length of the clip in seconds. `spans` `[M, 2]` holds start and end of the answers in seconds, and
    is empty where they are not published. `tokens` `[L, C]` holds the features of the words, in `dtype`.
    """
    texts = {name: tfds.features.Text() for name in ("qid", "clip", "kind", "text")}
    numbers = {"duration": tensor(), "spans": tensor(None, 2), "tokens": tensor(None, None, dtype=dtype)}
    return tfds.features.FeaturesDict(texts | numbers)


def load_queries(directory: str, splits: str, spec: SampleSpec, source: str = "") -> list[Question]:
    """Read the questions of a split, or of several joined by '+', in their order.

    Args:
      directory: Folder of the data set, made by data_prep.
      splits: Split or splits, such as 'train' or 'train+validation'.
      spec: Sizes of samples.
      source: Required source of the words' features; '' for released ones.

    Raises:
      DataError: If the data set is missing, damaged or was made with other settings, or if a question has an unknown
        kind or more than `spec.max_tokens` words.
    """
    questions = []
    for name in splits.split("+"):
        split = Split(directory, name)
        check_protocol(directory, split.protocol, {"kind": KIND, "text_dim": spec.text_dim, "text_source": source})
        for record in read_records(split, query_features(split.protocol["dtype"])):
            texts = (record[key].decode() for key in ("qid", "clip", "text"))
            question = Question(*texts, float(record["duration"]), record["spans"], record["tokens"])
            kind, count = record["kind"].decode(), len(question.tokens)
            if kind not in QUERY_KINDS:
                raise DataError(
                    f"data {directory}: question {question.qid} is a {kind!r}, not one of {', '.join(QUERY_KINDS)}"
                )
            if not 0 < count <= spec.max_tokens:
                raise DataError(
                    f"data {directory}: question {question.qid} has {count} words' features, expected 1 to "
                    f"{spec.max_tokens} (config.text.max_tokens)"
                )
            questions.append(question)
    return questions
