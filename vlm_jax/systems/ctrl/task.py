"""Task of CTRL, which finds the moment that a sentence describes among sliding windows (Gao et al. 2017)."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.errors import ConfigError
from vlm_jax.systems.ctrl import metrics, samples
from vlm_jax.systems.ctrl.loss import alignment_regression
from vlm_jax.systems.ctrl.model import NORMALISATIONS, Ctrl
from vlm_jax.systems.ctrl.scoring import answer, make_comparison
from vlm_jax.task import Aux, Evaluator, Task
from vlm_jax.types import Batch, DataShard, ModelState, Outputs, Params, Pipeline, Variables


def make_task(config: ConfigDict) -> Task:
    """Build the task.

    Raises:
      ConfigError: If the config has an invalid model or loss.
    """
    if config.batch_groups != 1:
        raise ConfigError(
            "config.batch_groups: CTRL compares all sentences of a batch with all its windows; expected 1, found "
            f"{config.batch_groups}"
        )
    model, weights = make_model(config), config.loss
    specs = batch_specs(config)

    def init(key: jax.Array, batch: Batch) -> Variables:
        return model.init(key, batch["visual"], batch["sentence"])

    def loss_fn(params: Params, model_state: ModelState, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
        del key
        loss = alignment_regression(
            model.apply({"params": params}, batch["visual"], batch["sentence"]),
            batch["offsets"],
            positive_weight=weights.positive_weight,
            alpha=weights.alpha or None,
            regression_weight=weights.regression_weight,
        )
        return loss.total, Aux({"alignment": loss.alignment, "regression": loss.regression}, model_state)

    def train_data(shard: DataShard) -> Pipeline:
        if config.data.synthetic:
            return SyntheticPipeline(specs, shard)
        wanted = config.data
        return samples.train_pipeline(*load(config, wanted.windows, wanted.queries, wanted.split), shard)

    return Task(
        name="ctrl",
        batch_specs={"": specs},
        init=init,
        loss_fn=loss_fn,
        train_data=train_data,
        evaluators={name: _moments(config, name, model) for name in config.moments},
        encoders={
            "clips": functools.partial(embed_clips, model),
            "sentences": functools.partial(embed_sentences, model),
            "pairs": functools.partial(compare, model),
        },
    )


def make_model(config: ConfigDict) -> Ctrl:
    """Build the network.

    Raises:
      ConfigError: If a key of `config.model` is invalid; it names the key.
    """
    model = config.model
    if model.normalisation not in NORMALISATIONS:
        raise ConfigError(
            f"config.model.normalisation: {model.normalisation!r} is not one of {', '.join(NORMALISATIONS)}"
        )
    return Ctrl(
        dim=model.dim,
        hidden_dim=model.hidden_dim,
        use_bias=model.use_bias,
        normalisation=model.normalisation,
        projection_std=model.projection_std,
        head_std=model.head_std,
        factored=model.factored,
        dtype=jnp.dtype(model.dtype),
    )


def batch_specs(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the global training batch; an example is a window, a sentence about it, and its offsets."""
    sizes = {"visual": config.model.visual_dim, "sentence": config.model.sentence_dim, "offsets": 2}
    return {name: jax.ShapeDtypeStruct((config.batch_size, size), np.float32) for name, size in sizes.items()}


def embed_clips(model: Ctrl, variables: Variables, batch: Batch) -> Outputs:
    """Embed windows: `visual` `[B, V]` -> `clip_embedding` `[B, D]`."""
    return {"clip_embedding": model.apply(variables, batch["visual"], method="embed_clips")}


def embed_sentences(model: Ctrl, variables: Variables, batch: Batch) -> Outputs:
    """Embed sentences: `sentence` `[B, S]` -> `sentence_embedding` `[B, D]`."""
    return {"sentence_embedding": model.apply(variables, batch["sentence"], method="embed_sentences")}


def compare(model: Ctrl, variables: Variables, batch: Batch) -> Outputs:
    """Compare `clip_embedding` `[M, D]` with `sentence_embedding` `[N, D]`: `score` `[N, M]`, `offsets` `[N, M, 2]`."""
    out = model.apply(variables, batch["clip_embedding"], batch["sentence_embedding"], method="compare")
    return {"score": out[..., 0], "offsets": out[..., 1:]}


def load(config: ConfigDict, windows: str, queries: str, split: str) -> tuple[samples.MomentData, samples.SampleSpec]:
    """Read the sentences of a split with the windows of their videos; return them and the settings of samples."""
    from vlm_jax.systems.ctrl import data

    spec = make_sample_spec(config)
    return data.load(windows, queries, split, spec), spec


def truth_of(query: samples.Sentence) -> dict[str, list]:
    """Return the moment of a sentence: first and last frame, and `[[start, end]]` in seconds if `fps` is known."""
    frames = query.span.tolist()
    return {"truth_frames": frames} | ({"truth": [[frame / query.fps for frame in frames]]} if query.fps else {})


def make_sample_spec(config: ConfigDict) -> samples.SampleSpec:
    """Return the settings of samples in a config."""
    names = ("min_overlap", "max_outside", "context_num", "context_size", "context", "unique_clips")
    names += ("video_source", "text_source")
    sizes = {"visual_dim": config.model.visual_dim, "sentence_dim": config.model.sentence_dim}
    return samples.SampleSpec(**sizes, **{name: config.data[name] for name in names})


def _moments(config: ConfigDict, name: str, model: Ctrl) -> Evaluator:
    """Return the evaluator that compares the sentences of every video with its windows and suppresses overlaps."""
    wanted = config.moments[name]
    thresholds, ks = tuple(wanted.thresholds), tuple(wanted.ks)

    # Read once, on first use.
    loaded = functools.cache(lambda: load(config, wanted.windows, wanted.queries, wanted.split))

    def data(shard: DataShard) -> Pipeline:
        return samples.evaluation_pipeline(*loaded(), shard)

    def predict(variables: Variables, batch: Batch) -> Outputs:
        return embed_clips(model, variables, batch) | embed_sentences(model, variables, batch)

    def score(variables: Variables, outputs: Outputs, mesh: Mesh) -> Outputs:
        run = make_comparison(model, variables, mesh, **config.tile)
        content, _ = loaded()
        spans, best = content.spans_by_video(), np.full((len(content.queries), len(thresholds), max(ks), 3), np.nan)
        for video, numbers in content.by_video().items():
            rows, windows = spans[video]
            pairs = run(outputs["clip_embedding"][rows], outputs["sentence_embedding"][numbers])
            if pairs is None:
                continue  # only process 0 has the scores
            found = answer(video, windows, content.truth(numbers), pairs, thresholds, max(ks))
            best[numbers] = np.stack([found.best[threshold] for threshold in thresholds], 1)
        return {"best": best}

    def answers(outputs: Outputs) -> list[metrics.Answers]:
        content, _ = loaded()
        spans = content.spans_by_video()
        return [
            metrics.Answers(
                video,
                content.truth(numbers),
                len(spans[video][1]),
                {threshold: outputs["best"][numbers, place] for place, threshold in enumerate(thresholds)},
            )
            for video, numbers in content.by_video().items()
        ]

    def summarize(outputs: Outputs) -> dict[str, float]:
        return metrics.summarize(answers(outputs), ks, count_videos_without_windows=wanted.count_videos_without_windows)

    def write(outputs: Outputs, folder: Path, origin: Mapping[str, Any]) -> None:
        del origin
        found = answers(outputs)
        if 0.5 in thresholds:
            (folder / f"{name}_predictions.json").write_text(metrics.predictions_text(found))
            if {1, 5} <= set(ks):
                (folder / f"{name}_recall.json").write_text(metrics.results_text(summarize(outputs)))
        # Segments suppressed for the threshold nearest to 0.5.
        place = min(range(len(thresholds)), key=lambda number: abs(thresholds[number] - 0.5))
        content, _ = loaded()
        num_frames = {video.name: video.num_frames for video in content.videos}
        lines = [
            metrics.query_line(query.qid, query.video, query.text, best, query.fps, num_frames.get(query.video, 0))
            | truth_of(query)
            for query, best in zip(content.queries, outputs["best"][:, place], strict=True)
        ]
        (folder / f"{name}_queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return Evaluator(
        data=data,
        predict_fn=predict,
        score_fn=score,
        summarize=summarize,
        write=write,
        protocol={
            "task": "moments by sentences: windows of the sentence's own video, shifted by the predicted offsets",
            "windows": wanted.windows,
            "data": wanted.queries,
            "split": wanted.split,
            "thresholds": list(thresholds),
            "context": f"{config.data.context}, {config.data.context_num} x {config.data.context_size} frames per side",
            "suppression": f"greedy, for every threshold anew, at the threshold less {metrics.SUPPRESSION_MARGIN}",
            "ties": "of equal scores the later window is the better one",
            "average": "over sentences; those of videos without windows "
            + ("count as wrong" if wanted.count_videos_without_windows else "are left out"),
        },
    )
