"""Predictor of GroundNLQ: answers to questions about videos, without ground truth."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError
from vlm_jax.extraction import Extractor
from vlm_jax.predictor import Moment, Predictions, Predictor, Request, encode_requests, moments_of
from vlm_jax.systems.groundnlq import answers, samples
from vlm_jax.systems.groundnlq.samples import ClipFeatures, Question
from vlm_jax.systems.groundnlq.task import find_moments, make_model, make_sample_spec, open_store
from vlm_jax.train.batches import predict_batches
from vlm_jax.types import DataShard, Variables

FILE = "nlq_submission.json"
"""Name of the challenge's result file."""
BATCH = 4
"""Number of questions that are answered at the same time."""


def make_predictor(config: ConfigDict, variables: Variables, extractor: Extractor) -> "GroundNLQPredictor":
    """Return the predictor of a restored checkpoint."""
    return GroundNLQPredictor(config, variables, extractor)


class GroundNLQPredictor(Predictor):
    """Predictor of the moments of a long video that answer a question."""

    def __init__(self, config: ConfigDict, variables: Variables, extractor: Extractor) -> None:
        super().__init__(config, variables)
        self._extractor, self._model = extractor, make_model(config)
        self._find = functools.cache(self._make_find)

    def ground(self, video: str | Path, sentences: Sequence[str], *, top_k: int = 5) -> list[list[Moment]]:
        """Return the best moments of a video file for every sentence, best first.

        Args:
          video: Video file.
          sentences: Raw sentences; one without a word that the text encoder knows gets no moments.
          top_k: Largest number of moments per sentence, K.

        Raises:
          VideoError: If the file cannot be used.
          FeatureError: If the features of training cannot be made here.
        """
        from vlm_jax.video import decode

        encoded = self._extractor.sentences({str(number): text for number, text in enumerate(sentences)})
        features = self._extractor.video(video).astype(np.float32)
        duration, most = decode.probe(video).duration, self.config.text.max_tokens
        questions = [
            Question(name, "", "", duration, np.zeros((0, 2)), np.atleast_2d(vectors)[:most])
            for name, vectors in encoded.vectors.items()
        ]
        found = self._answer(questions, OneClip(features), top_k)
        moments = {question.qid: moments_of(rows) for question, rows in zip(questions, found, strict=True)}
        return [moments.get(str(number), []) for number in range(len(sentences))]

    def predict(self, requests: Sequence[Request], top_k: int = 5) -> Predictions:
        """Return the best moments for questions about clips of the prepared data (`config.predict`).

        Args:
          requests: Clips, or questions about them; a request's `vector` is `[L, C]`, one row per word.
          top_k: Largest number of moments per question, K.

        Raises:
          DataError: If the data cannot be used.
          ConfigError: If words' features have another size or another source than those of training.
        """
        from vlm_jax.systems.groundnlq import data

        config, spec = self.config, make_sample_spec(self.config, train=False)
        store = open_store(config, config.predict.features)
        requests, missing = encode_requests(requests, self._extractor)
        known: list[Question] = []
        if any("vector" not in request for request in requests):
            known = data.load_queries(config.predict.queries, config.predict.split, spec, config.data.text_source)
        asked, unanswered = _asked(requests, known, config)
        missing += unanswered
        absent = store.read({question.clip for question in asked})
        questions = []
        for question in asked:
            if question.clip in absent:
                place = f"{question.clip} is not in {config.predict.features}"
                missing.append((question.qid, "clip without features", place))
                continue
            duration = question.duration or store.duration(question.clip)
            questions.append(dataclasses.replace(question, duration=duration))
        if not questions:
            return Predictions([], {}, missing)
        found = self._answer(questions, store, top_k)
        lines = [answers.query_line(question, moments) for question, moments in zip(questions, found, strict=True)]
        file = answers.submission(questions, found)
        return Predictions(lines, {FILE: json.dumps(file)} if file else {}, missing)

    def _answer(self, questions: Sequence[Question], store: ClipFeatures, top_k: int) -> list[np.ndarray]:
        """Return the moments `[K, 3]` (start and end in seconds, score) of every question, best first."""
        spec = make_sample_spec(self.config, train=False)
        pipeline = samples.evaluation_pipeline(questions, store, spec, DataShard(batch_size=BATCH))
        index, parts = [], []
        for numbers, outputs in predict_batches(self._find(top_k), self.variables, pipeline):
            index.append(numbers)
            parts.append(outputs)
        order = np.argsort(np.concatenate(index), kind="stable")
        outputs = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
        return answers.by_query(self.config, questions, store, outputs)

    def _make_find(self, top_k: int) -> Callable[..., Any]:
        decoding = answers.make_decoding(self.config, top_k)
        return self.compile(functools.partial(find_moments, self._model, decoding))


class OneClip:
    """Features of one clip, returned for any name."""

    def __init__(self, features: np.ndarray) -> None:
        self._features = features

    def __getitem__(self, clip: str) -> np.ndarray:
        """Return the features of the clip: `[T, C]`."""
        return self._features

    def length(self, clip: str) -> int:
        """Return the number of positions, T."""
        return len(self._features)


def _asked(
    requests: Sequence[Mapping[str, Any]], known: Sequence[Question], config: ConfigDict
) -> tuple[list[Question], list[tuple[str, str, str]]]:
    """Return the questions that are asked, with their words' features, and the requests that cannot be answered."""
    by_clip: dict[str, list[Question]] = {}
    for query in known:
        by_clip.setdefault(query.clip, []).append(query)
    found, missing = [], []
    for number, request in enumerate(requests):
        clip, text = request["video"], request.get("query", "")
        name = str(request.get("qid", f"{clip}#{number}"))
        if "vector" not in request:
            own = by_clip.get(clip, [])
            matches = [query for query in own if "query" not in request or (query.qid, query.text) == (name, text)]
            # The same text under another name.
            matches = matches or [dataclasses.replace(query, qid=name) for query in own if query.text == text][:1]
            found += matches
            if not matches:
                place = f"{config.predict.queries} ({config.predict.split})"
                reason = "question without words' features" if text else "clip without questions"
                missing.append((name if text else clip, reason, f"{text!r} is not in {place}" if text else place))
            continue
        tokens = np.asarray(request["vector"], np.float32)
        if tokens.ndim != 2 or tokens.shape[1] != config.model.text_dim:
            raise ConfigError(
                f"question {name}: features of words of shape {list(tokens.shape)}, the model takes "
                f"[L, {config.model.text_dim}] (config.model.text_dim)"
            )
        if request.get("source", "") != config.data.text_source:
            raise ConfigError(
                f"question {name}: its words' features were made with {request.get('source', '')!r}, the model was "
                f"trained with {config.data.text_source!r} (config.data.text_source)"
            )
        most = config.text.max_tokens
        if not 0 < len(tokens) <= most:
            missing.append((name, "too few or too many words", f"{len(tokens)}, expected 1 to {most}"))
            continue
        if not np.isfinite(tokens).all():
            missing.append((name, "words' features not finite", text))
            continue
        found.append(Question(name, clip, text, 0.0, np.zeros((0, 2)), tokens))
    return found, missing
