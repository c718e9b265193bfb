"""Checks of the golden cases of snps3's losses, queues, metrics and learning rates."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from snps3_tolerance import check

from vlm_jax.config import base_config
from vlm_jax.losses.momentum import enqueue, move_towards
from vlm_jax.losses.nce import grouped_mil_nce
from vlm_jax.systems.snps3 import heads, loss, metrics
from vlm_jax.train.schedule import make_schedule


def check_mil_nce(case, precision):
    """Compare losses and gradients for every group size, and the loss with weights."""
    for each in case.manifest["cases"]:
        number, size = each["k"], each["n_pair"]
        scores = jnp.asarray(case[f"in/sim_{number}"])
        assert scores.shape == (each["batch"] * size,) * 2
        found, gradient = jax.value_and_grad(grouped_mil_nce)(scores, size)
        check(case, {f"loss/mil_nce_{number}": found, f"grad/sim_{number}": gradient})
    weighted = grouped_mil_nce(jnp.asarray(case["in/sim_w"]), 1, jnp.asarray(case["in/weight"]))
    check(case, {"loss/mil_nce_weighted": weighted})


def check_level1_in_batch(case, precision):
    """Compare scores, loss and gradients of the contrast inside of a batch."""
    batch, clips = case.config["batch"], case.config["n_clips"]
    assert case.config["temperature"] == 1

    def in_batch(text, video):
        scores = loss.clip_scores(text, video.reshape(batch, clips, -1))
        return loss.in_batch(scores), scores

    gradients = jax.value_and_grad(in_batch, (0, 1), has_aux=True)
    (found, scores), (text, video) = gradients(jnp.asarray(case["in/text"]), jnp.asarray(case["in/video"]))
    check(case, {"loss/level1_similarity_loss": found, "grad/text": text, "grad/video": video})
    paired = jnp.diagonal(scores).T
    outputs = {"sim_text_video_clip": scores, "reduced_logsumexp": loss.over_clips(scores), "paired_sim": paired}
    check(case, {f"out/{name}": value for name, value in outputs.items()})


def check_moco_loss(case, precision):
    """Compare both directions' losses, their mean and its gradients."""
    batch, clips = case.config["batch"], case.config["n_clips"]
    arrays = case.group("in/")
    queues = jnp.asarray(arrays["txt_queue"].T), jnp.asarray(arrays["img_queue"].T)
    assert len(queues[0]) == case.config["queue"]
    keys = jnp.asarray(arrays["k_text"]), jnp.asarray(arrays["k_video"]).reshape(batch, clips, -1)

    def level1(texts, video):
        videos = video.reshape(batch, clips, -1)
        found = loss.momentum_contrast(texts, videos, *keys, *queues, case.config["T"])
        return sum(found) / 2, found

    gradients = jax.value_and_grad(level1, (0, 1), has_aux=True)
    (mean, (video_to_text, text_to_video)), (text, video) = gradients(arrays["q_text"], arrays["q_video"])
    losses = {"video_to_text": video_to_text, "text_to_video": text_to_video, "level1_similarity_loss": mean}
    check(case, {f"loss/{name}": value for name, value in losses.items()})
    check(case, {"grad/q_text": text, "grad/q_video": video})


def check_moco_queue(case, precision):
    """Compare the queues and the pointer after every batch, and the momentum update."""
    queues = {kind: jnp.asarray(case[f"in/{name}"].T) for kind, name in (("video", "img_queue"), ("text", "txt_queue"))}
    pointers = dict.fromkeys(queues, jnp.array(0))
    assert {len(queue) for queue in queues.values()} == {case.config["K"]}
    for number, count in enumerate(case.config["enqueued"]):
        for kind in queues:
            keys = jnp.asarray(case[f"in/k_{kind}_{number}"])
            assert len(keys) == count
            queues[kind], pointers[kind] = enqueue(queues[kind], pointers[kind], keys)
            check(case, {f"out/ptr_{number}": pointers[kind][None]})
        found = {"img": queues["video"].T, "txt": queues["text"].T}
        check(case, {f"out/{name}_queue_{number}": queue for name, queue in found.items()})
    moved = move_towards({"w": case["in/param_k"]}, {"w": case["in/param_q"]}, case.config["momentum"])
    check(case, {"out/param_k_after": moved["w"]})


def check_lvwm_loss(case, precision):
    """Compare scores, loss and gradients of the local matching."""
    batch, clips = case.config["batch"], case.config["n_clips"]
    assert case["in/word_embed"].shape[1] == case.config["words"]

    def local(words, video):
        scores = loss.word_scores(words, video.reshape(batch, clips, -1))
        return loss.in_batch(scores), loss.over_clips(scores)

    gradients = jax.value_and_grad(local, (0, 1), has_aux=True)
    (found, scores), (words, video) = gradients(jnp.asarray(case["in/word_embed"]), jnp.asarray(case["in/video"]))
    check(case, {"loss/VWM_after_similarity_loss": found, "out/VWM_after_simi": scores})
    check(case, {"grad/word_embed": words, "grad/video": video})


HEAD = "model.mlm_head.transformer_mlm.cls.predictions."


def check_mlm_head(case, precision):
    """Compare logits, loss, accuracy and gradients of the masked words' head."""
    with jax.enable_x64(True):
        names = {"dense": "transform.dense", "norm": "transform.LayerNorm"}
        weights = {name.removeprefix(HEAD): np.float64(value) for name, value in case.weights().items()}
        dense = {"kernel": weights["transform.dense.weight"].T, "bias": weights["transform.dense.bias"]}
        norm = {"scale": weights["transform.LayerNorm.weight"], "bias": weights["transform.LayerNorm.bias"]}
        params = {"dense": dense, "norm": norm, "bias": weights["bias"]}
        table, hidden, labels = weights["decoder.weight"], np.float64(case["in/encoder_output"]), case["in/labels"]
        assert len(table) == case.config["vocab_size"]

        def head(params, table, hidden):
            logits = heads.MaskedWordHead(dtype=jnp.float64).apply({"params": params}, hidden, table)
            return loss.cross_entropy(logits, labels), logits

        gradients = jax.value_and_grad(head, (0, 1, 2), has_aux=True)
        (found, logits), (moved, words, states) = gradients(params, table, hidden)
        accuracy = loss.hit_rate(logits, labels)
    check(case, {"loss/masked_lm_loss": found, "out/logits": logits, "out/acc": accuracy})
    ours = {"bias": moved["bias"], "decoder.weight": words}
    for module, name in names.items():
        leaves = moved[module]
        ours |= {f"{name}.weight": leaves.get("kernel", leaves.get("scale")), f"{name}.bias": leaves["bias"]}
    check(case, {f"gradnorm/{HEAD}{name}": np.linalg.norm(value) for name, value in ours.items()})
    check(case, {"grad/encoder_output": states})


def check_itm_head(case, precision):
    """Compare loss, accuracy and gradient of the matching of captions."""
    weights = {name.rsplit(".", 1)[1]: value for name, value in case.weights().items()}
    labels = case["in/labels"]
    assert labels.tolist() == sorted(labels, reverse=True)

    def head(pooled):
        logits = pooled @ weights["weight"].T + weights["bias"]
        return loss.matching_pairs(logits[labels == 1], logits[labels == 0])

    (found, accuracy), gradient = jax.value_and_grad(head, has_aux=True)(jnp.asarray(case["in/pooled"]))
    check(case, {"loss/itm_loss": found, "out/acc": accuracy, "grad/pooled": gradient})


def check_retrieval_metrics(case, precision):
    """Compare the metrics of both directions, and the lists of matches."""
    by_text, by_video = case.manifest["t2v"], case.manifest["v2t"]
    pairs = [(text, video) for text, videos in enumerate(by_text) for video in videos]
    texts, videos = zip(*pairs, strict=True)
    assert metrics.matches(texts, videos) == (by_text, by_video)
    ours = metrics.retrieval_metrics(case["in/sim"], texts, videos)
    assert len(ours) == len(case.group("out/"))
    check(case, {f"out/{name}": value for name, value in ours.items()})


def check_lr_schedule(case, precision):
    """Compare the factors of every table; epochs, where given, come instead of steps."""
    (rtol,) = case.tolerance.values()
    for table in case.manifest["tables"]:
        wanted = ConfigDict(table["config"])
        config = base_config().schedule
        config.name, config.learning_rate, config.decay_factor = "multistep", 1.0, wanted.lr_ratio
        config.boundary_epochs = tuple(wanted.lr_epochs)
        config.boundary_steps = () if wanted.lr_epochs else tuple(wanted.lr_steps)
        if wanted.use_warmup:
            config.warmup_steps, config.warmup_start = wanted.warmup_iterations, wanted.warmup_factor
        ours = make_schedule(config, 130000, table["epoch_iterations"])(np.array(table["step"]))
        np.testing.assert_allclose(ours, table["factor"], rtol=rtol)


CHECKERS = {
    "mil_nce": check_mil_nce,
    "level1_in_batch": check_level1_in_batch,
    "moco_loss": check_moco_loss,
    "moco_queue": check_moco_queue,
    "lvwm_loss": check_lvwm_loss,
    "mlm_head": check_mlm_head,
    "itm_head": check_itm_head,
    "retrieval_metrics": check_retrieval_metrics,
    "lr_schedule": check_lr_schedule,
}
