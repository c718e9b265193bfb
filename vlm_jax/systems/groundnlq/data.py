"""GroundNLQ's records. Clips and questions are two data sets, each record a clip or a question."""

import tensorflow_datasets as tfds

from vlm_jax.data.feature_store import read_records, tensor
from vlm_jax.data.protocol import check_protocol
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.systems.groundnlq.samples import Question, SampleSpec

KIND = "nlq_queries"
QUERY_KINDS = ("nlq", "narration", "nlq_narration")
"""What a question may be. The reference's script writes the last one, its loader reads the other two."""


def query_features(dtype: str = "float32") -> tfds.features.FeaturesDict:
    """A question: its name, its clip, kind and text, seconds of the clip, start and end of what answers it in seconds
    `[M, 2]` (none where that is not published), and features of its words `[L, C]`."""
    texts = {name: tfds.features.Text() for name in ("qid", "clip", "kind", "text")}
    numbers = {"duration": tensor(), "spans": tensor(None, 2), "tokens": tensor(None, None, dtype=dtype)}
    return tfds.features.FeaturesDict(texts | numbers)


def load_queries(directory: str, splits: str, spec: SampleSpec, source: str = "") -> list[Question]:
    """Read the questions of a split, or of several joined by '+', in their order.

    Args:
      directory: Made by data_prep.
      splits: Such as 'train' or 'train+validation'.
      spec: Sizes.
      source: What the words' features have to be made with; '' are released ones.

    Raises:
      DataError: for a data set that is missing, damaged or was made otherwise; for a question of an unknown kind or
        longer than `spec.max_tokens`.
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
