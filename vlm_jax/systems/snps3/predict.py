"""Predictor of SNP-S3: embeddings of videos and texts, search among videos, and answers to questions."""

import functools
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError, DataError
from vlm_jax.extraction import Extractor
from vlm_jax.predictor import Match, Predictions, Predictor, Request
from vlm_jax.systems.snps3.annotations import LONGEST
from vlm_jax.systems.snps3.evaluation import answer_names, best_answers, load_tokenizer, text_arrays
from vlm_jax.systems.snps3.index import EncodedVideo, VideoIndex
from vlm_jax.systems.snps3.matching import encode_texts, level_1
from vlm_jax.systems.snps3.sampling import frame_indices, part_of_video
from vlm_jax.systems.snps3.task import make_task
from vlm_jax.systems.snps3.transforms import evaluation_view
from vlm_jax.text.tokenizer import Tokenizer
from vlm_jax.train.batches import predict_batches
from vlm_jax.train.scoring import score_matrix
from vlm_jax.types import Batch, Outputs, Variables
from vlm_jax.video.listing import videos_of

PAIRS = 16
"""Number of texts with videos that pass the cross encoder at the same time."""
SHORTLIST = 100
"""Number of videos, the best ones by level 1, that level 2 compares with a text."""
BLOCK = 256
"""Largest number of texts, and of videos, that level 1 compares at the same time."""

Video = str | Path | np.ndarray | EncodedVideo
"""Video or image file, RGB frames uint8 `[T, H, W, 3]`, or what `encode_video` returned."""


class Answer(NamedTuple):
    """Answer to a question: text, and score (level 2 of an option, or probability in the vocabulary of answers)."""

    text: str
    score: float


def make_predictor(config: ConfigDict, variables: Variables, extractor: Extractor | None) -> "SnpS3Predictor":
    """Return the predictor of a restored checkpoint; it works on raw video and needs no extractor."""
    del extractor
    return SnpS3Predictor(config, variables)


class SnpS3Predictor(Predictor):
    """Predictor that searches videos by texts and answers questions about them."""

    def __init__(self, config: ConfigDict, variables: Variables) -> None:
        super().__init__(config, variables)
        encoders = make_task(config).encoders
        self._encode = {name: self.compile(encoder) for name, encoder in encoders.items()}

        def answer(variables: Variables, batch: Batch) -> Outputs:
            return best_answers(encoders, variables, batch, batch["tokens"], config.model.num_answers)

        self._answer = self.compile(answer)

    def encode_video(self, video: Video, *, start: float = 0.0, end: float | None = None) -> EncodedVideo:
        """Encode a video, or a part of it, from as many frames as the model takes, sampled as in evaluation.

        Args:
          video: Video or image file, or RGB frames uint8 `[T, H, W, 3]`. What is already encoded is returned unchanged.
          start: Start of the part of a file, seconds.
          end: Its end; None for the end of the video.

        Returns:
          `clips` `[C, D]`, embeddings of length 1 that texts are compared with, and `tokens` `[C, D]` for level 2.

        Raises:
          VideoError: If the file cannot be read.
          DataError: If the part is empty or begins after the end of the video.
          ValueError: If frames have another shape or type.
        """
        if isinstance(video, EncodedVideo):
            return video
        shown = self._shown(video, start, end)
        outputs = jax.device_get(self._encode["video"](self.variables, {"video": shown[None]}))
        return EncodedVideo(outputs["clips"][0], outputs["tokens"][0])

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts, `[N, D]`, of length 1.

        Words that the vocabulary lacks become its unknown token; a text without any other is reported by a warning.

        Raises:
          UserError: If the config names no usable vocabulary.
          DataError: If a text is empty.
          ValueError: If `texts` is a single string.
        """
        return encode_texts(self._encode["text"], self.variables, self._texts("encode_text", texts), batch_size=BLOCK)

    def index(self, videos: str | Path | Sequence[str | Path]) -> VideoIndex:
        """Encode the videos of a folder, or of a list of files and folders, to search them.

        Files that cannot be read are left out and listed in `VideoIndex.skipped`.

        Raises:
          DataError: If there is no video.
        """
        from vlm_jax.video.decode import VideoError

        names: list[str] = []
        skipped: list[tuple[str, str, str]] = []

        def batches() -> Iterator[Batch]:
            for name, path in videos_of(videos).items():
                try:
                    shown = self._shown(path, 0.0, None)
                except VideoError as error:
                    skipped.append((name, error.reason, error.detail))
                    continue
                names.append(name)
                marks = {"mask": np.ones(1, np.int32), "index": np.zeros(1, np.int32)}
                yield {"video": shown[None], **marks}

        found = [outputs for _, outputs in predict_batches(self._encode["video"], self.variables, batches())]
        if not found:
            raise DataError(f"none of {len(skipped)} videos can be read; {': '.join(filter(None, skipped[0]))}")
        clips, tokens = (np.concatenate([outputs[key] for outputs in found]) for key in ("clips", "tokens"))
        return VideoIndex(names, clips, tokens, self._identity, skipped)

    def open_index(self, path: str | Path, videos: str | Path | Sequence[str | Path]) -> VideoIndex:
        """Return the index of a file; if the file is missing, it is made from `videos`, as `index` does, and written.

        Raises:
          DataError: If the file holds no index, or there is no video.
        """
        if Path(path).exists():
            return VideoIndex.open(path)
        index = self.index(videos)
        index.save(path)
        return index

    def search(
        self,
        texts: Sequence[str],
        videos: str | Path | Sequence[str | Path] | VideoIndex,
        top_k: int = 5,
        *,
        shortlist: int = SHORTLIST,
    ) -> list[list[Match]]:
        """Return the videos that fit each text, best first.

        Level 1, the embeddings, shortlists the videos; level 2, the cross encoder, orders the shortlist. A run that
        answers questions has level 1 only.

        Args:
          texts: N texts.
          videos: Folder, list of files and folders, or what `index` returned for them.
          top_k: Number of videos to return for each text.
          shortlist: Number of videos that level 2 compares with a text, at least `top_k`; 0 leaves level 2 out.

        Raises:
          DataError: If a text is empty, there is no video, or the index is another model's.
          ConfigError: If a number is out of range.
        """
        if top_k < 1 or shortlist < 0:
            raise ConfigError(f"top_k and shortlist: expected at least 1 and 0, found {top_k} and {shortlist}")
        arrays = self._texts("search", texts)
        index = videos if isinstance(videos, VideoIndex) else self.index(videos)
        if index is not videos:
            for name, reason, detail in index.skipped:
                warnings.warn(f"{': '.join(filter(None, (name, reason, detail)))}; left out", stacklevel=2)
        if index.made_by != self._identity:
            raise DataError("index: made by another model, or with other frames; make it again")
        embeddings = encode_texts(self._encode["text"], self.variables, arrays, batch_size=BLOCK)
        sizes = {"row_block": min(BLOCK, len(embeddings)), "column_block": min(BLOCK, len(index.names))}
        first = score_matrix(level_1, {}, embeddings, index.clips, **sizes)
        reranked = shortlist if self._has_level_2 else 0
        orders = np.argsort(-first, axis=1, kind="stable")[:, : max(top_k, reranked)]
        if not reranked:
            return [
                [Match(index.names[v], float(row[v]), levels={"level_1": float(row[v])}) for v in order]
                for row, order in zip(first, orders, strict=True)
            ]
        rows = np.repeat(np.arange(len(orders)), orders.shape[1])
        second = self._match({name: array[rows] for name, array in arrays.items()}, index.tokens, orders.reshape(-1))
        found = []
        for row, order, scores in zip(first, orders, second.reshape(orders.shape), strict=True):
            best = np.argsort(-scores, kind="stable")[:top_k]
            pairs = [(int(order[place]), float(scores[place])) for place in best]
            found.append([Match(index.names[v], s, levels={"level_1": float(row[v]), "level_2": s}) for v, s in pairs])
        return found

    def answer(
        self,
        video: Video,
        question: str,
        options: Sequence[str] | None = None,
        *,
        start: float = 0.0,
        end: float | None = None,
        top_k: int = 5,
    ) -> list[Answer]:
        """Return answers to a question about a video, best first.

        With options, level 2 compares each option with the video, and the question is not shown to the model, as in the
        reference's multiple choice: write options as statements. Without options, the answers are those of the
        vocabulary of a run that was trained on open questions.

        Args:
          video: Video or image file, RGB frames uint8 `[T, H, W, 3]`, or what `encode_video` returned.
          question: Question.
          options: Options to choose from; None for an open question.
          start: Start of the part of a file, seconds.
          end: Its end; None for the end of the video.
          top_k: Number of answers to return for an open question; all options are returned.

        Raises:
          ConfigError: If the run was not trained for such questions.
          DataError: If the question or an option is empty, or the part is not in the video.
          VideoError: If the file cannot be read.
        """
        self._check_question(question, options)
        if options is None:
            arrays, names = self._texts("question", [question]), answer_names(self.config)
            tokens = self.encode_video(video, start=start, end=end).tokens
            found = jax.device_get(self._answer(self.variables, {**arrays, "tokens": tokens[None]}))
            best = zip(found["answers"][0, :top_k], found["scores"][0, :top_k], strict=True)
            return [Answer(names[label], float(score)) for label, score in best]
        arrays = self._texts("options", options)
        tokens = self.encode_video(video, start=start, end=end).tokens
        scores = self._match(arrays, tokens[None], np.zeros(len(options), np.int64))
        return [Answer(options[number], float(scores[number])) for number in np.argsort(-scores, kind="stable")]

    def predict(self, requests: Sequence[Request], top_k: int = 5) -> Predictions:
        """Return the answers to questions about videos.

        Args:
          requests: Questions: `video`, the path of a file, with `start` and `end` (seconds) for a part of it;
            `question`, or `query`; `options`, if there are some; `qid`.
          top_k: Number of answers in the lines of open questions.

        Returns:
          One line per question, in order: `qid`, `video`, `question`; `prediction`, the number of the option or the
          text of the answer; and `best`, the answers with their scores.
        """
        from vlm_jax.video.decode import VideoError

        lines: list[dict[str, Any]] = []
        missing: list[tuple[str, str, str]] = []
        last: tuple[Any, EncodedVideo | None] = (None, None)
        for number, request in enumerate(requests):
            qid = str(request.get("qid", number))
            question, options = request.get("question", request.get("query", "")), request.get("options")
            part = {key: request[key] for key in ("start", "end") if request.get(key) is not None}
            place = (request["video"], *part.items())
            try:
                self._check_question(question, options)
                if last[0] != place:
                    last = place, self.encode_video(request["video"], **part)
                answers = self.answer(last[1], question, options, top_k=top_k)
            except DataError as error:
                missing.append((qid, "cannot be asked", str(error)))
                continue
            except VideoError as error:
                missing.append((qid, f"video is {error.reason}", str(error)))
                continue
            best = [{"answer": text, "score": score} for text, score in answers]
            prediction = answers[0].text if options is None else list(options).index(answers[0].text)
            asked = {"qid": qid, "video": str(request["video"]), **part, "question": question}
            lines.append({**asked, "prediction": prediction, "best": best})
        return Predictions(lines, {}, missing)

    @property
    def _has_level_2(self) -> bool:
        return self.config.head != "question_answering"

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.config)

    @functools.cached_property
    def _identity(self) -> str:
        """Return the digest of weights and frames, on which an index depends."""
        settings = f"{self.fingerprint()} {self.config.frames.to_json(sort_keys=True)} {self.config.strict}"
        return hashlib.sha256(settings.encode()).hexdigest()

    def _check_question(self, question: str, options: Sequence[str] | None) -> None:
        """Check that the model can answer such a question.

        Raises:
          ConfigError: If the run was not trained for it.
          DataError: If there is nothing to ask or to choose from.
        """
        head = self.config.head
        if options is None:
            if self._has_level_2:
                raise ConfigError(
                    f"a run of {head} has no vocabulary of answers; give options, or take a run of question_answering"
                )
            if not question.strip():
                raise DataError("question: empty")
        elif not self._has_level_2:
            raise ConfigError("a run of question_answering does not compare options; leave them out")
        elif isinstance(options, str) or not options:
            raise DataError(f"options: expected a list of one or more texts, found {options!r}")

    def _texts(self, what: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return `text` and `text_mask` `[N, L]` of texts; see `encode_text`."""
        if isinstance(texts, str):
            raise ValueError(f"{what}: expected a list of texts, found one string")
        if not texts:
            raise DataError(f"{what}: expected one or more texts, found none")
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                raise DataError(f"{what}: text {number} is empty")
        tokenizer = self._tokenizer
        arrays = text_arrays(tokenizer, self.config.text.length, texts)
        known = ~np.isin(arrays["text"], (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unknown_id))
        for text in (text for text, own in zip(texts, known, strict=True) if not own.any()):
            warnings.warn(f"{what}: no word of {text!r} is in {self.config.text.vocabulary}", stacklevel=3)
        return arrays

    def _match(self, texts: Mapping[str, np.ndarray], tokens: np.ndarray, videos: np.ndarray) -> np.ndarray:
        """Return the level-2 scores `[P]` of pairs.

        Args:
          texts: `text` and `text_mask` of each pair, `[P, L]`.
          tokens: Clip tokens of the videos, `[M, C, D]`.
          videos: Video of each pair, `[P]`.
        """
        count = len(videos)

        def batches() -> Iterator[Batch]:
            for begin in range(0, count, PAIRS):
                index = begin + np.arange(PAIRS, dtype=np.int32)
                rows = np.minimum(index, count - 1)
                marks = {"mask": (index < count).astype(np.int32), "index": index}
                yield {name: array[rows] for name, array in texts.items()} | {"tokens": tokens[videos[rows]]} | marks

        found = predict_batches(self._encode["match"], self.variables, batches())
        return np.concatenate([outputs["scores"] for _, outputs in found])

    def _shown(self, video: str | Path | np.ndarray, start: float, end: float | None) -> np.ndarray:
        """Return the frames that the model sees of a video, `[N, H, W, 3]`."""
        frames = self.config.frames
        if isinstance(video, np.ndarray):
            if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not len(video):
                raise ValueError(f"encode_video: expected uint8 [T, H, W, 3], found {video.dtype} {list(video.shape)}")
            shown = video[frame_indices(len(video), frames.clips, frames_per_clip=frames.frames_per_clip)]
        else:
            shown = read_part(video, start, end, frames.clips, frames.frames_per_clip)
        return evaluation_view(shown, frames, self.config.strict)


def read_part(path: str | Path, start: float, end: float | None, clips: int, frames_per_clip: int = 1) -> np.ndarray:
    """Return the frames uint8 `[C * F, H, W, 3]` that evaluation samples of a video, or of a part of it.

    Args:
      path: Video or image file; an image is one frame repeated.
      start: Start of the part, seconds.
      end: Its end; None for the end of the video.
      clips: Number of clips, C.
      frames_per_clip: Frames of each clip, F.

    Raises:
      VideoError: If the file cannot be read.
      DataError: If the part is empty or begins after the end of the video.
    """
    from vlm_jax.video import decode

    if not 0 <= start < LONGEST or (end is not None and not start < end < LONGEST):
        raise DataError(f"{path}: start is {start} s and end {end} s, expected 0 <= start < end")
    length, first = decode.count_frames(path), 0
    if not length:
        raise decode.VideoError(path, "no frames")
    if start or end is not None:
        rate = float(decode.probe(path).frame_rate)
        first, count = part_of_video(start, length / rate if end is None and rate else end or 0, rate)
        if first >= length or not rate:
            raise DataError(f"{path}: no part begins at {start} s; {length} frames at {rate:g} per second")
        length = min(count, length - first)
    numbers = first + frame_indices(length, clips, frames_per_clip=frames_per_clip)
    wanted, places = np.unique(numbers, return_inverse=True)
    return np.stack(list(decode.frames_at(path, wanted.tolist())))[places]
