"""Predictor of CTRL: moments of videos for sentences, without ground truth."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError
from vlm_jax.extraction import Extractor
from vlm_jax.features import FeatureError
from vlm_jax.predictor import (
    Moment,
    Predictions,
    Predictor,
    Request,
    encode_requests,
    moments_of,
    row_batches,
)
from vlm_jax.systems.ctrl import metrics
from vlm_jax.systems.ctrl.samples import Sentence, Video
from vlm_jax.systems.ctrl.scoring import answer, make_comparison
from vlm_jax.systems.ctrl.task import embed_clips, embed_sentences, make_model, make_sample_spec
from vlm_jax.systems.ctrl.windows import context, feature_windows
from vlm_jax.train.batches import predict_batches
from vlm_jax.types import Variables

THRESHOLD = 0.5
"""IoU threshold of a right answer for which segments are suppressed."""
BATCH = 256
"""Number of windows or sentences that are embedded at the same time."""
FILE = "TALL_infer_res_.json"
"""Name of the reference's file of predictions."""


def make_predictor(config: ConfigDict, variables: Variables, extractor: Extractor) -> "CtrlPredictor":
    """Return the predictor of a restored checkpoint."""
    return CtrlPredictor(config, variables, extractor)


class CtrlPredictor(Predictor):
    """Predictor of the moments of a video that a sentence describes."""

    def __init__(self, config: ConfigDict, variables: Variables, extractor: Extractor) -> None:
        super().__init__(config, variables)
        model = make_model(config)
        self._extractor = extractor
        self._embed_clips = self.compile(functools.partial(embed_clips, model))
        self._embed_sentences = self.compile(functools.partial(embed_sentences, model))
        self._compare = make_comparison(model, self.variables, **config.tile)

    def ground(self, video: str | Path, sentences: Sequence[str], *, top_k: int = 5) -> list[list[Moment]]:
        """Return the best moments of a video file for every sentence, best first.

        Args:
          video: Video file.
          sentences: Raw sentences; one without a word that the text encoder knows gets no moments.
          top_k: Largest number of moments per sentence, K.

        Raises:
          VideoError: If the file cannot be used.
          FeatureError: If the features of training cannot be made here, or the video is shorter than a window.
        """
        from vlm_jax.video import decode

        encoded = self._extractor.sentences({str(number): text for number, text in enumerate(sentences)})
        cut, features = self.config.data.window, self._extractor.video(video)
        settings, num_frames = self._extractor.video_settings, int(decode.probe(video).duration * cut.fps)
        count, spans, means = feature_windows(features, settings, cut.fps, cut.lengths, cut.overlap, num_frames)
        if not len(spans):
            raise FeatureError(
                f"{video}: {count} frames at {cut.fps:g} frames per second, shorter than {min(cut.lengths)}"
            )
        data = self.config.data
        sides = context(spans, data.context_num, data.context_size, data.context)
        name = Path(video).name
        shown = Video(name, float(cut.fps), spans, means, *sides, count)
        names = list(encoded.vectors)
        best = self._answer(shown, np.stack([encoded.vectors[name] for name in names]), top_k)
        lines = (
            metrics.query_line(qid, name, "", found, shown.fps, shown.num_frames)
            for qid, found in zip(names, best, strict=True)
        )
        moments = {line["qid"]: moments_of(line["seconds"]) for line in lines}
        return [moments.get(str(number), []) for number in range(len(sentences))]

    def predict(self, requests: Sequence[Request], top_k: int = 5) -> Predictions:
        """Return the best segments for sentences about videos of the prepared data (`config.predict`).

        Args:
          requests: Videos, or sentences about them.
          top_k: Largest number of segments per sentence, K.

        Raises:
          DataError: If the data cannot be used.
          ConfigError: If vectors have another size or another source than those of training.
        """
        from vlm_jax.systems.ctrl import data

        config, spec = self.config, make_sample_spec(self.config)
        requests, missing = encode_requests(requests, self._extractor)
        windows = data.load_windows(config.predict.windows, {request["video"] for request in requests}, spec)
        known: dict[str, list[Sentence]] = {}
        if any("vector" not in request for request in requests):
            for query in data.load_queries(config.predict.queries, config.predict.split, spec):
                known.setdefault(query.video, []).append(query)
        sentences, unanswered = _sentences(requests, known, config)
        missing += unanswered
        by_video: dict[str, list[dict[str, Any]]] = {}
        for sentence in sentences:
            by_video.setdefault(sentence["video"], []).append(sentence)
        videos = {video.name: video for video in windows}
        lines, answers = [], []
        for name, asked in sorted(by_video.items()):
            if name not in videos:
                missing.append((name, "video without windows", f"{len(asked)} sentences; {config.predict.windows}"))
                continue
            video = videos[name]
            best = self._answer(video, np.stack([sentence["vector"] for sentence in asked]), top_k)
            answers.append(metrics.Answers(name, np.full((len(asked), 2), np.nan), len(video.spans), {THRESHOLD: best}))
            for sentence, found in zip(asked, best, strict=True):
                fps = video.fps or sentence["fps"]
                lines.append(metrics.query_line(sentence["qid"], name, sentence["query"], found, fps, video.num_frames))
        return Predictions(lines, {FILE: metrics.predictions_text(answers, THRESHOLD)}, missing)

    def _answer(self, video: Video, vectors: np.ndarray, top_k: int) -> np.ndarray:
        """Return the best segments of a video for S sentences: `[S, K, 3]`, start and end in frames, and score."""
        visual = np.stack([video.visual(row) for row in range(len(video.spans))])
        clips = self._embedded(self._embed_clips, "visual", visual)["clip_embedding"]
        texts = self._embedded(self._embed_sentences, "sentence", vectors)["sentence_embedding"]
        unknown = np.full((len(vectors), 2), np.nan)
        return answer(video.name, video.spans, unknown, self._compare(clips, texts), (THRESHOLD,), top_k).best[
            THRESHOLD
        ]

    def _embedded(self, embed: Callable, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        batches = predict_batches(embed, self.variables, row_batches(name, rows, BATCH))
        parts = [outputs for _, outputs in batches]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _sentences(
    requests: Sequence[Mapping[str, Any]], known: Mapping[str, Sequence[Sentence]], config: ConfigDict
) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    """Return the sentences that are asked, each with its vector, and the requests that cannot be answered."""
    found, missing, dim = [], [], config.model.sentence_dim
    for number, request in enumerate(requests):
        video, text = request["video"], request.get("query", "")
        name = str(request.get("qid", f"{video}#{number}"))
        if "vector" in request:
            vector = np.asarray(request["vector"], np.float32)
            if vector.shape != (dim,):
                raise ConfigError(
                    f"sentence {name}: a vector of shape {list(vector.shape)}, the model takes [{dim}] "
                    "(config.model.sentence_dim)"
                )
            if request.get("source", "") != config.data.text_source:
                raise ConfigError(
                    f"sentence {name}: its vector was made with {request.get('source', '')!r}, the model was trained "
                    f"with {config.data.text_source!r} (config.data.text_source)"
                )
            if not np.isfinite(vector).all():
                missing.append((name, "vector not finite", text))
                continue
            found.append({"qid": name, "video": video, "query": text, "vector": vector, "fps": 0.0})
            continue
        matches = [
            query
            for query in known.get(video, ())
            if ("query" not in request or query.text == text) and ("qid" not in request or query.qid == name)
        ]
        found += [
            {"qid": query.qid, "video": video, "query": query.text, "vector": query.vector, "fps": query.fps}
            for query in matches
        ]
        if not matches:
            place = f"{config.predict.queries} ({config.predict.split})"
            reason = "sentence without a vector" if text else "video without sentences"
            missing.append((name if text else video, reason, f"{text!r} is not in {place}" if text else place))
    return found, missing
