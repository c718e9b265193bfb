"""Task of MIL-NCE, which learns video and text embeddings from narrated video (Miech et al. 2020)."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vlm_jax.config import starts_fresh
from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.errors import ConfigError
from vlm_jax.interop import torch_files
from vlm_jax.losses.nce import mil_nce
from vlm_jax.metrics import retrieval
from vlm_jax.models.s3d import BLOCKS, INITIALIZERS, S3D
from vlm_jax.models.swin3d import VideoSwin
from vlm_jax.ops.pixels import to_unit
from vlm_jax.systems.milnce.linear_probe import linear_probe, require_solver
from vlm_jax.systems.milnce.model import MilNce, SwinTower, TextTower
from vlm_jax.task import Aux, Evaluator, Task
from vlm_jax.text import word_list
from vlm_jax.train.scoring import score_matrix
from vlm_jax.types import Batch, DataShard, ModelState, Outputs, Params, Pipeline, Variables

WORD_TABLE = "text/word_embd"
"""Name of the frozen table of word vectors."""

VIDEO_NETWORKS = ("s3d", "swin")
FRAME_ORDERS = ("filmed", "shuffled", "reversed")
"""Orders in which evaluation shows the frames of a clip; the drop in the last two measures the use of motion."""
SIMILARITY_BLOCK = 1024
"""Largest number of sentences, and of videos, that are compared at the same time."""


def make_task(config: ConfigDict) -> Task:
    """Build the task.

    Raises:
      ConfigError: If the model or the evaluators of the config are invalid.
    """
    model = make_model(config)

    def init(key: jax.Array, batch: Batch) -> Variables:
        return model.init(key, to_unit(batch["video"]), _sentences(batch["text"]))

    def loss_fn(params: Params, model_state: ModelState, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
        video = jnp.where(batch["flip"][:, None, None, None, None], batch["video"][:, :, :, ::-1], batch["video"])
        (video_embedding, text_embedding), updates = model.apply(
            {"params": params, **model_state},
            to_unit(video),
            _sentences(batch["text"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": key},
        )
        loss = mil_nce(video_embedding, text_embedding)
        if config.loss.divide_gradient_by_groups:
            # A process of the reference has the gradient through its own examples; these are averaged, not summed.
            share = loss / config.batch_groups
            loss = share + jax.lax.stop_gradient(loss - share)
        return loss, Aux({}, {**model_state, **updates})

    def train_data(shard: DataShard) -> Pipeline:
        if config.data.synthetic:
            return SyntheticPipeline(specs, shard)
        from vlm_jax.systems.milnce import data

        text, words = config.text, vocabulary(config)
        if shard.index == 0:
            _warn_of_unknown("the first captions", data.first_captions(config.data.directory), words, config)
        return data.train_pipeline(
            config.data.directory,
            data.Clips(**config.clips, max_words=text.max_words, lower_case=text.lower_case),
            words,
            shard,
            streams=config.data.streams,
            block=config.data.block,
            workers=config.data.workers,
        )

    specs = batch_specs(config)
    return Task(
        name="milnce",
        batch_specs={"": specs},
        init=init,
        loss_fn=loss_fn,
        train_data=train_data,
        evaluators=_evaluators(config, model),
        encoders={"video": _video_encoder(model), "text": _text_encoder(model)},
        after_init=lambda variables: _with_word_table(variables, config),
    )


def make_model(config: ConfigDict) -> MilNce:
    """Build both towers.

    Raises:
      ConfigError: If a key of `config.model` is invalid; it names the key.
    """
    model = config.model
    unknown = [name for name in model.blocks if name not in BLOCKS]
    if unknown:
        raise ConfigError(f"config.model.blocks: {unknown[0]!r} is not one of {', '.join(BLOCKS)}")
    if model.weight_init not in INITIALIZERS:
        raise ConfigError(f"config.model.weight_init: {model.weight_init!r} is not one of {', '.join(INITIALIZERS)}")
    if model.video not in VIDEO_NETWORKS:
        raise ConfigError(f"config.model.video: {model.video!r} is not one of {', '.join(VIDEO_NETWORKS)}")
    dtype = jnp.dtype(model.dtype)
    text = TextTower(config.text.rows, config.text.word_dim, model.text_hidden_dim, model.embedding_dim, dtype)
    if model.video == "swin":
        sizes = {name: tuple(size) if isinstance(size, list | tuple) else size for name, size in model.swin.items()}
        return MilNce(SwinTower(VideoSwin(**sizes, dtype=dtype), model.embedding_dim), text)
    video = S3D(
        embedding_dim=model.embedding_dim,
        blocks=tuple(model.blocks),
        width=model.width,
        space_to_depth=model.space_to_depth,
        groups=config.batch_groups,
        weight_init=model.weight_init,
        dtype=dtype,
    )
    return MilNce(video, text)


def batch_specs(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the global training batch."""
    clips, batch = config.clips, config.batch_size
    return {
        "video": jax.ShapeDtypeStruct((batch, clips.num_frames, clips.size, clips.size, 3), np.uint8),
        "text": jax.ShapeDtypeStruct((batch, clips.num_candidates, config.text.max_words), np.int32),
        "flip": jax.ShapeDtypeStruct((batch,), np.bool_),
    }


def vocabulary(config: ConfigDict) -> dict[str, int]:
    """Return the ids of the word list that `config.text` names, by word.

    Raises:
      VocabularyError: If the list is missing or does not fit the word table.
    """
    return word_list.load(config.text.vocabulary, config.text.rows)


def _warn_of_unknown(what: str, sentences: Sequence[object], words: Mapping[str, int], config: ConfigDict) -> None:
    """Warn if words of sentences are dropped."""
    lost = word_list.cover(sentences, words, lower=config.text.lower_case).describe(config.text.vocabulary)
    if lost:
        warnings.warn(f"{what}: {lost}", stacklevel=2)


def _sentences(text: jax.Array) -> jax.Array:
    """Reshape word ids `[B, K, L]` to `[B*K, L]`."""
    return text.reshape(-1, text.shape[-1])


def _video_encoder(model: MilNce):  # noqa: ANN202
    def encode(variables: Variables, batch: Batch) -> Outputs:
        """Encode `video` uint8 `[B, T, H, W, 3]`: `video_embedding` `[B, D]` and `mixed_5c` `[B, C]`."""
        own = {name: tree["video"] for name, tree in variables.items() if "video" in tree}
        outputs = model.video.apply(own, to_unit(batch["video"]))
        return {name: outputs[name] for name in ("video_embedding", "mixed_5c")}

    return encode


def _text_encoder(model: MilNce):  # noqa: ANN202
    def encode(variables: Variables, batch: Batch) -> Outputs:
        """Encode word ids `text` `[N, L]`: `text_embedding` `[N, D]`."""
        own = {name: tree["text"] for name, tree in variables.items() if "text" in tree}
        return {"text_embedding": model.text.apply(own, batch["text"])}

    return encode


def _with_word_table(variables: Variables, config: ConfigDict) -> Variables:
    """Replace the random word table by `config.text.word2vec`, unless a source of `init_from` supplies a table."""
    path = config.text.word2vec
    if not path or not starts_fresh(config, WORD_TABLE):
        return variables
    table = torch_files.load(path)
    expected = (config.text.rows, config.text.word_dim)
    if not isinstance(table, np.ndarray) or table.shape != expected:
        found = f"an array {table.shape}" if isinstance(table, np.ndarray) else f"a {type(table).__name__}"
        raise ConfigError(f"config.text.word2vec: {path} holds {found}, expected one tensor {expected}")
    return {**variables, "frozen": {"text": {"word_embd": table.astype(np.float32)}}}


def _evaluators(config: ConfigDict, model: MilNce) -> dict[str, Evaluator]:
    """Return the evaluators of `config.retrieval` and `config.linear`, by name."""
    twice = sorted(set(config.retrieval) & set(config.linear))
    if twice:
        raise ConfigError(f"config.linear.{twice[0]}: config.retrieval has an evaluator of that name, too")
    found = {name: _retrieval(config, name, model) for name in config.retrieval}
    return found | {name: _linear(config, name, model) for name in config.linear}


def _retrieval(config: ConfigDict, name: str, model: MilNce) -> Evaluator:
    """Return the evaluator of zero-shot retrieval: each caption against every item's mean embedding over W windows."""
    wanted, clips = config.retrieval[name], config.clips
    if wanted.frame_order not in FRAME_ORDERS:
        raise ConfigError(
            f"config.retrieval.{name}.frame_order: {wanted.frame_order!r} is not one of {', '.join(FRAME_ORDERS)}"
        )
    encode_video, encode_text = _video_encoder(model), _text_encoder(model)

    def data(shard: DataShard) -> Pipeline:
        from vlm_jax.systems.milnce import evaluation_data as data

        words = vocabulary(config)
        if shard.index == 0:
            captions = [item["text"] for item in data.retrieval_items(wanted.directory, wanted.split)]
            _warn_of_unknown(f"captions of {name}", captions, words, config)
        return data.retrieval_pipeline(
            wanted.directory,
            wanted.split,
            wanted.windows,
            clips.num_frames,
            clips.fps,
            clips.size,
            config.text.max_words_retrieval,
            words,
            shard,
            wanted.frame_order,
            config.text.lower_case,
        )

    def predict(variables: Variables, batch: Batch) -> Outputs:
        items, windows = batch["video"].shape[:2]
        video = batch["video"].reshape(items * windows, *batch["video"].shape[2:])
        embedding = encode_video(variables, {"video": video})["video_embedding"]
        return {
            "video": embedding.reshape(items, windows, -1).mean(1),
            "text": encode_text(variables, {"text": batch["text"]})["text_embedding"],
        }

    def score(variables: Variables, outputs: Outputs, mesh: Mesh) -> Outputs:
        del variables
        size = min(SIMILARITY_BLOCK, len(outputs["text"]))
        blocks = {"row_block": size, "column_block": size}
        return {"similarity": score_matrix(dot_products, {}, outputs["text"], outputs["video"], mesh, **blocks)}

    def write(outputs: Outputs, folder: Path, origin: Mapping[str, Any]) -> None:
        del origin
        from vlm_jax.systems.milnce import evaluation_data as data

        items = data.retrieval_items(wanted.directory, wanted.split)
        (folder / f"{name}_rankings.json").write_text(json.dumps(rankings(items, outputs["similarity"]), indent=1))

    return Evaluator(
        data=data,
        predict_fn=predict,
        score_fn=score,
        summarize=lambda outputs: summarize_retrieval(outputs["similarity"]),
        write=write,
        protocol={
            "task": "text-to-video retrieval, each caption against all items",
            "data": wanted.directory,
            "split": wanted.split,
            "windows": wanted.windows,
            "frames": clips.num_frames,
            "fps": clips.fps,
            "size": clips.size,
            "frame_order": wanted.frame_order,
            "pooling": "mean of the window embeddings, dot product, no normalisation",
            "ties": "metrics: every position that equals the match's score counts; tie_free: the middle of equals",
            "words": config.text.max_words_retrieval,
            "lower_case": config.text.lower_case,
        },
    )


def dot_products(variables: Variables, text: jax.Array, video: jax.Array) -> jax.Array:
    """Return the dot products of sentences `[R, D]` and videos `[C, D]`: `[R, C]`."""
    del variables
    return jnp.matmul(text, video.T, precision="highest")


def summarize_retrieval(similarity: np.ndarray) -> dict[str, float]:
    """Return the reference's metrics, the tie-free metrics, and the recall of chance."""
    queries = len(similarity)
    chance = {f"chance/R@{k}": min(1.0, k / queries) for k in retrieval.RECALLS}
    tie_free = {f"tie_free/{name}": value for name, value in retrieval.tie_free_metrics(similarity).items()}
    return retrieval.reference_metrics(similarity) | tie_free | chance | {"queries": float(queries)}


def rankings(items: list[dict[str, object]], similarity: np.ndarray, best: int = 10) -> list[Mapping[str, object]]:
    """Return each query with its best items, their scores, and the rank of the true item (from 1)."""
    queries = []
    for number, (item, scores) in enumerate(zip(items, similarity, strict=True)):
        order = np.argsort(-scores, kind="stable")
        queries.append(
            {
                "text": item["text"],
                "item": number,
                "rank": int(np.flatnonzero(order == number)[0]) + 1,
                "best": [
                    {"item": int(other), "score": float(scores[other])}
                    | {key: items[other][key] for key in ("video_id", "start", "end")}
                    for other in order[:best]
                ],
            }
        )
    return queries


def _linear(config: ConfigDict, name: str, model: MilNce) -> Evaluator:
    """Return the evaluator that fits a linear classifier on the `mixed_5c` of every window, on each of three splits."""
    wanted, clips = config.linear[name], config.clips
    encode_video = _video_encoder(model)

    def data(shard: DataShard) -> Pipeline:
        require_solver()
        from vlm_jax.systems.milnce import evaluation_data as data

        return data.classification_pipeline(
            wanted.directory, wanted.split, wanted.windows, clips.num_frames, clips.size, shard
        )

    def predict(variables: Variables, batch: Batch) -> Outputs:
        video = batch["video"]
        if wanted.flipped:
            video = jnp.concatenate([video, video[..., ::-1, :]], 1)
        items, windows = video.shape[:2]
        features = encode_video(variables, {"video": video.reshape(items * windows, *video.shape[2:])})["mixed_5c"]
        return {
            "features": features.reshape(items, windows, -1),
            "label": batch["label"],
            "splits": batch["splits"],
        }

    return Evaluator(
        data=data,
        predict_fn=predict,
        summarize=lambda outputs: summarize_linear(name, outputs),
        protocol={
            "task": "classification by a linear SVM on frozen features (one against the rest, C = 100)",
            "data": wanted.directory,
            "split": wanted.split,
            "windows": wanted.windows,
            "flipped": wanted.flipped,
            "frames": clips.num_frames,
            "fps": "of the video",
            "size": clips.size,
            "features": "mixed_5c of every window; a test video's decision values are summed over its windows",
        },
    )


def summarize_linear(name: str, outputs: Outputs) -> dict[str, float]:
    """Return the accuracy on each split and the mean accuracy, as fractions.

    Raises:
      ConfigError: If a split has no test videos, or training videos of fewer than two classes.
    """
    metrics = {}
    for number, codes in enumerate(outputs["splits"].T, start=1):
        train, test = codes == 1, codes == 2
        classes = len(np.unique(outputs["label"][train]))
        if classes < 2 or not test.any():
            raise ConfigError(
                f"config.linear.{name}: split {number} has training videos of {classes} classes and {test.sum()} test "
                "videos; expected two classes and one video at least"
            )
        metrics[f"accuracy/split{number}"] = linear_probe(outputs["features"], outputs["label"], train, test).accuracy
    return {"accuracy/mean": float(np.mean(list(metrics.values()))), **metrics, "videos": float(len(outputs["label"]))}
