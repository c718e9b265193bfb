"""Evaluators of SNP-S3: retrieval at both levels, answers to questions, and choices among options."""

import collections
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError, DataError
from vlm_jax.files import replacing
from vlm_jax.systems.snps3 import answers as vocabularies
from vlm_jax.systems.snps3 import metrics
from vlm_jax.systems.snps3.captions import CaptionSettings, fixed_text
from vlm_jax.systems.snps3.matching import Encoders, level_2, score_pairs
from vlm_jax.systems.snps3.table import ItemTable, read_table
from vlm_jax.task import Evaluator
from vlm_jax.text import vocabulary
from vlm_jax.text.tokenizer import Tokenizer
from vlm_jax.types import Batch, DataShard, Outputs, Pipeline, Variables

PREFIXES = {"level_1": "l1_simi_", "level_2": "l2_simi_"}
"""The reference's prefixes of the metrics of each level."""
BEST = 10
"""Number of videos written for each text."""
BEST_ANSWERS = 5
"""Number of answers written for each question."""


def make_evaluators(config: ConfigDict, encoders: Encoders) -> dict[str, Evaluator]:
    """Return the evaluators of `config.evaluation` but those of kind 'loss', by name.

    Raises:
      ConfigError: If a kind is unknown, or the head of the config has no scores for it.
    """
    made = {}
    for name, wanted in config.evaluation.items():
        if wanted.kind not in (*KINDS, "loss"):
            raise ConfigError(f"config.evaluation.{name}.kind: {wanted.kind!r} is not one of {', '.join(KINDS)}, loss")
        if wanted.kind == "loss":
            continue
        asks = config.head == "question_answering"
        if wanted.kind == "answers" and not asks:
            raise ConfigError(
                f"config.evaluation.{name}.kind: 'answers' needs a run of question_answering, found {config.head}"
            )
        if asks and (wanted.kind == "choices" or (wanted.kind == "retrieval" and wanted.level_2)):
            raise ConfigError(
                f"config.evaluation.{name}.kind: {wanted.kind!r} needs level 2, which question_answering does not train"
            )
        made[name] = KINDS[wanted.kind](config, name, encoders)
    return made


def load_tokenizer(config: ConfigDict) -> Tokenizer:
    """Return the tokeniser of a run.

    Raises:
      ConfigError: If the config names none, or one with another number of tokens than the model has.
      TokenizerError: If it cannot be used.
    """
    path, expected = config.text.vocabulary, config.text.vocabulary_size
    if not path:
        raise ConfigError("config.text.vocabulary: empty, expected the file of the vocabulary of training")
    tokenizer = vocabulary.load(path)
    if tokenizer.vocabulary_size != expected:
        raise ConfigError(
            f"config.text.vocabulary: {path} has {tokenizer.vocabulary_size} tokens, the model {expected}"
        )
    return tokenizer


def text_arrays(tokenizer: Tokenizer, length: int, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return `text` and `text_mask`, int32 `[N, L]`, of the beginnings of texts."""
    settings = CaptionSettings(tokenizer, length)
    pairs = [fixed_text(text, settings) for text in texts]
    text, mask = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    return {"text": text, "text_mask": mask}


def _evaluator(config: ConfigDict, name: str, **functions: Any) -> Evaluator:
    """Return an evaluator on the data that its entry of the config names."""
    wanted = config.evaluation[name]

    def data(shard: DataShard) -> Pipeline:
        from vlm_jax.systems.snps3 import data

        return data.evaluation_pipeline(config, wanted, shard)

    protocol = {
        "data": wanted.directory,
        "split": wanted.split,
        "clips": config.frames.clips,
        "frames_per_clip": config.frames.frames_per_clip,
        "frames": (
            f"shorter side {config.frames.evaluation_short_side}, centre {config.frames.size} pixels"
            if config.frames.form == "crop"
            else f"whole, longer side {config.frames.max_size} pixels"
        ),
        "text_length": config.text.length,
    }
    return Evaluator(data=data, **{**functions, "protocol": functions["protocol"] | protocol})


def _table_of(wanted: ConfigDict) -> Callable[[], ItemTable]:
    return functools.cache(lambda: read_table(wanted.directory, wanted.split))


def _retrieval(config: ConfigDict, name: str, encoders: Encoders) -> Evaluator:
    """Return the evaluator of retrieval: every distinct text against every video, in both directions."""
    wanted = config.evaluation[name]
    table, second = _table_of(wanted), level_2(encoders) if wanted.level_2 else None

    def predict(variables: Variables, batch: Batch) -> Outputs:
        return encoders["video"](variables, batch)

    def score(variables: Variables, outputs: Outputs, mesh: Mesh) -> Outputs:
        found = table()
        if len(outputs["clips"]) != len(found.videos):
            raise DataError(
                f"{wanted.directory}: {len(outputs['clips'])} videos of {wanted.split} were read, its table has "
                f"{len(found.videos)}"
            )
        texts = text_arrays(load_tokenizer(config), config.text.length, found.texts)
        blocks = {"row_block": wanted.row_block, "column_block": wanted.column_block}
        return score_pairs(encoders, second, variables, texts, outputs, mesh, **blocks)

    def summarize(outputs: Outputs) -> dict[str, float]:
        return summarize_retrieval(outputs, table().pair_texts.tolist(), table().pair_videos.tolist())

    def write(outputs: Outputs, folder: Path, origin: Mapping[str, Any]) -> None:
        del origin
        _write_lines(folder / f"{name}.jsonl", rankings(table(), outputs))

    return _evaluator(
        config,
        name,
        predict_fn=predict,
        score_fn=score,
        summarize=summarize,
        write=write,
        protocol={
            "task": "retrieval, every distinct text against every video, in both directions",
            "levels": "embeddings (l1_simi) and cross encoder (l2_simi)" if second else "embeddings (l1_simi) only",
            "ties": "of equal scores, the one that comes first in the data is ranked first",
            "truths": "a text of several videos has several matches, and a video of several texts; the best one counts",
        },
    )


def summarize_retrieval(scores: Outputs, texts: Sequence[int], videos: Sequence[int]) -> dict[str, float]:
    """Return the metrics of each level and of chance, and the numbers of texts and videos.

    Args:
      scores: `level_1` and, where it was computed, `level_2`, `[N, M]`.
      texts: Number of the text of each annotated pair.
      videos: Number of its video.
    """
    levels = [level for level in PREFIXES if level in scores]
    found, count = {}, scores["level_1"].shape
    by_text, by_video = metrics.matches(texts, videos)
    for level in levels:
        own = metrics.retrieval_metrics(scores[level], texts, videos)
        found |= {f"{PREFIXES[level]}{metric}": value for metric, value in own.items()}
    for way, truths, others in (("t2v", by_text, count[1]), ("v2t", by_video, count[0])):
        for k in metrics.RECALLS:
            chance = float(np.mean([_chance(len(own), others, k) for own in truths]))
            found |= {f"chance/{PREFIXES[level]}{way}-r@{k}": chance for level in levels}
        middle = float(np.median([(others + 1) / (len(own) + 1) for own in truths]))
        found |= {f"chance/{PREFIXES[level]}{way}-mr": middle for level in levels}
    return found | {"texts": float(count[0]), "videos": float(count[1])}


def _chance(right: int, count: int, k: int) -> float:
    """Return the probability that one of `right` matches is among the first k of `count` in random order."""
    wrong = 1.0
    for place in range(min(k, count)):
        wrong *= max(count - right - place, 0) / (count - place)
    return 1 - wrong


def rankings(table: ItemTable, scores: Outputs, best: int = BEST) -> Iterator[dict[str, Any]]:
    """Yield each text with its best videos by the highest level, all scores of these, and the ranks of its match.

    Args:
      table: Texts, videos and pairs.
      scores: `level_1` and, where it was computed, `level_2`, `[N, M]`.
      best: Number of videos per text.
    """
    levels = [level for level in PREFIXES if level in scores]
    truths, _ = metrics.matches(table.pair_texts.tolist(), table.pair_videos.tolist())
    for number, own in enumerate(truths):
        orders = {level: np.argsort(-scores[level][number], kind="stable") for level in levels}
        right = set(own)
        ranks = {
            level: next(i for i, v in enumerate(order.tolist(), 1) if v in right) for level, order in orders.items()
        }
        yield {
            "text": number,
            "caption": table.texts[number],
            "truth": [_part(table, video) for video in own],
            "ranks": ranks,
            "best": [
                {**_part(table, video), **{level: float(scores[level][number, video]) for level in levels}}
                for video in orders[levels[-1]][:best].tolist()
            ],
        }


def _part(table: ItemTable, record: int) -> dict[str, Any]:
    """Return the name of a record's video, and the start and end of the part where it is not the whole."""
    start, end = table.spans[record].tolist()
    return {"video": table.videos[record]} | ({} if np.isnan(start) else {"start": start, "end": end})


def _answers(config: ConfigDict, name: str, encoders: Encoders) -> Evaluator:
    """Return the evaluator of open questions, whose answers are those of a vocabulary."""
    wanted = config.evaluation[name]
    table = _table_of(wanted)

    def predict(variables: Variables, batch: Batch) -> Outputs:
        tokens = encoders["video"](variables, batch)["tokens"]
        return best_answers(encoders, variables, batch, tokens, BEST_ANSWERS)

    def summarize(outputs: Outputs) -> dict[str, float]:
        labels = [table().labels(item) for item in range(len(table()))]
        known = [label for own in labels for label in set(own) if label >= 0]
        chance = max(collections.Counter(known).values(), default=0) / len(labels)
        return _accuracy(outputs["answers"][:, 0], labels, chance)

    def write(outputs: Outputs, folder: Path, origin: Mapping[str, Any]) -> None:
        del origin
        names = answer_names(config)
        lines = (
            {
                **_question(table(), item),
                "prediction": names[best[0]],
                "best": [{"answer": names[a], "score": float(s)} for a, s in zip(best, scores, strict=True)],
                "truth": table().answers[item],
            }
            for item, (best, scores) in enumerate(zip(outputs["answers"], outputs["scores"], strict=True))
        )
        _write_lines(folder / f"{name}.jsonl", lines)

    return _evaluator(
        config,
        name,
        predict_fn=predict,
        summarize=summarize,
        write=write,
        protocol={
            "task": "open questions; accuracy of the answer with the highest score, rounded to 4 digits",
            "answers": config.model.num_answers,
            "unknown": "a question whose answer is outside of the vocabulary counts as wrong",
            "scores": "softmax over the vocabulary of answers",
            "chance": "always the answer that is right for most of these questions",
        },
    )


def best_answers(
    encoders: Encoders, variables: Variables, batch: Batch, tokens: jax.Array, count: int
) -> dict[str, jax.Array]:
    """Return the most likely answers to questions, best first: `answers` int32 and their `scores` `[B, K]`.

    Args:
      encoders: Functions of the task.
      variables: Variables of the model.
      batch: `text` and `text_mask` of the questions, `[B, L]`.
      tokens: Clip tokens of the videos, `[B, C, D]`.
      count: Number of answers, K, as far as there are so many.
    """
    logits = encoders["answer"](variables, {**_words(batch), "tokens": tokens})["scores"]
    scores, best = jax.lax.top_k(jax.nn.softmax(logits), min(count, logits.shape[-1]))
    return {"answers": best, "scores": scores}


def answer_names(config: ConfigDict) -> list[str]:
    """Return the answers of a model by label; the labels as texts if no vocabulary is known.

    Raises:
      DataError: If the vocabulary cannot be read.
      ConfigError: If it has another number of answers than the model.
    """
    count, path = config.model.num_answers, config.answers.vocabulary
    if not path:
        return [str(label) for label in range(count)]
    names = vocabularies.read(Path(path))
    if len(names) != count:
        raise ConfigError(f"config.answers.vocabulary: {path} has {len(names)} answers, the model {count}")
    return names


def _choices(config: ConfigDict, name: str, encoders: Encoders) -> Evaluator:
    """Return the evaluator of questions with several options, each of which level 2 compares with the video."""
    wanted = config.evaluation[name]
    table = _table_of(wanted)

    def predict(variables: Variables, batch: Batch) -> Outputs:
        tokens = encoders["video"](variables, batch)["tokens"]
        chosen = {**_words(batch), "option_mask": batch["option_mask"], "tokens": tokens}
        return {"scores": encoders["choose"](variables, chosen)["scores"]}

    def summarize(outputs: Outputs) -> dict[str, float]:
        items = range(len(table()))
        chance = float(np.mean([1 / len(table().options(item)) for item in items]))
        return _accuracy(np.argmax(outputs["scores"], 1), [table().labels(item) for item in items], chance)

    def write(outputs: Outputs, folder: Path, origin: Mapping[str, Any]) -> None:
        del origin
        _write_lines(folder / f"{name}.jsonl", (line(item, scores) for item, scores in enumerate(outputs["scores"])))

    def line(item: int, scores: np.ndarray) -> dict[str, Any]:
        options, label = table().options(item), (table().labels(item) or [None])[0]
        best = int(np.argmax(scores))
        return {
            **_question(table(), item),
            "prediction": best,
            "answer": options[best],
            "options": [
                {"option": option, "score": float(score)} for option, score in zip(options, scores, strict=False)
            ],
            "truth": label,
        }

    return _evaluator(
        config,
        name,
        predict_fn=predict,
        summarize=summarize,
        write=write,
        protocol={
            "task": "questions with several options; accuracy of the option with the highest level-2 score",
            "question": "not shown to the model: every option is compared with the video",
            "chance": "a random option",
        },
    )


def _words(batch: Batch) -> dict[str, Any]:
    return {name: batch[name] for name in ("text", "text_mask")}


def _question(table: ItemTable, item: int) -> dict[str, Any]:
    """Return name, video and text of a question."""
    record = int(table.records[item])
    return {"qid": table.qids[item], **_part(table, record), "question": table.captions(item)[0]}


def _accuracy(predicted: np.ndarray, labels: Sequence[Sequence[int]], chance: float) -> dict[str, float]:
    """Return the accuracy on the questions whose answer is known, if there are any, and the numbers of questions."""
    known = [number for number, own in enumerate(labels) if own]
    counts = {"questions": float(len(labels))}
    if not known:
        return counts
    outside = sum(max(labels[number]) < 0 for number in known)
    counts |= {"outside_vocabulary": float(outside)} if outside else {}
    accuracy = metrics.accuracy(predicted[known], [labels[number] for number in known])
    return {"accuracy": accuracy, "chance/accuracy": chance, **counts}


def _write_lines(path: Path, lines: Iterator[Mapping[str, Any]]) -> None:
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


KINDS = {"retrieval": _retrieval, "answers": _answers, "choices": _choices}
