"""SNP-S3 as a task: all four heads from records to results, on any number of devices, resumed, in all precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from caption_files import QUESTIONS, make_config, prepared
from jax.sharding import AxisType, Mesh

from vlm_jax import config as configs
from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.errors import ConfigError
from vlm_jax.systems.snps3.config import default_config, evaluator, visual_network
from vlm_jax.systems.snps3.model import grid_mask
from vlm_jax.systems.snps3.objectives import MOMENTUM, key_parameters
from vlm_jax.systems.snps3.task import make_task
from vlm_jax.task import get_task
from vlm_jax.train import sharding
from vlm_jax.train.loop import train
from vlm_jax.train.optimizer import path_name
from vlm_jax.types import DataShard

SMOKES = {
    "pretraining": "configs/snps3_pretrain_cc3m.py:smoke",
    "retrieval": "configs/snps3_retrieval_msrvtt.py:smoke",
    "question_answering": "configs/snps3_qa_msvd.py:smoke",
    "multiple_choice": "configs/snps3_mc_msrvtt.py:smoke",
}


ZERO = ("key/bias", "similarity/score/bias")
"""Parameters without an effect: softmax and the loss of level 2 do not change when all scores do alike."""


@pytest.fixture(autouse=True)
def in_checkout(root, monkeypatch):
    monkeypatch.chdir(root)


def smoke(kind="pretraining", **changes):
    """Return the config of a small model, without dropout and stochastic depth."""
    config = configs.load(SMOKES[kind])
    with config.unlocked():
        config.model.dropout, config.model.visual.drop_path = 0.0, 0.0
        for key, value in changes.items():
            section, _, leaf = key.rpartition("__")
            (config[section] if section else config)[leaf] = value
    return config


def batch_of(task, size=4, seed=3):
    """Return a batch of noise whose texts are tokens with padding, and in which every caption has a masked word."""
    specs = next(iter(task.batch_specs.values()))
    batch = dict(next(iter(SyntheticPipeline(specs, DataShard(batch_size=size, seed=seed)))))
    rng = np.random.default_rng(seed)
    for name in ("raw", "masked", "false", "text"):
        if name in batch:
            batch[name] = rng.integers(110, 190, batch[name].shape).astype(np.int32)
    for name in ("raw_mask", "false_mask", "text_mask"):
        if name in batch:
            batch[name] = (np.arange(batch[name].shape[-1]) < 9) * np.ones_like(batch[name])
    if "labels" in batch and "masked" in batch:
        batch["labels"] = np.where(np.arange(batch["labels"].shape[1]) == 2, batch["raw"], -1).astype(np.int32)
    return batch


def variables_of(task):
    specs = next(iter(task.batch_specs.values()))
    batch = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    return dict(jax.jit(task.init)(jax.random.key(0), batch))


def outcome_of(config, batch, variables=None, key=0):
    """Return loss, reports, state and gradients of one step."""
    task = get_task(config)
    variables = dict(variables or variables_of(task))
    params = variables.pop("params")
    step = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))
    (loss, aux), gradients = step(params, variables, batch, jax.random.key(key))
    return {"loss": loss, "reports": aux.metrics, "state": aux.model_state, "gradients": gradients}


def wide(tree):
    """Return a tree whose floats have 64 bits."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else x, tree)


def leaves_of(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]).reshape(count, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_devices_agree_in_float64_on_loss_gradients_queues_and_key_encoders(groups):
    config = smoke(batch_groups=groups, momentum__decay=0.9)
    with jax.enable_x64(True):
        task = get_task(config)
        batch = batch_of(task)
        variables = jax.tree.map(
            lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else x, variables_of(task)
        )
        params = variables.pop("params")
        step = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))

        def outcome(count):
            data = sharding.shard_batch(mesh_of(count), batch)
            (loss, aux), gradients = step(params, variables, data, jax.random.key(0))
            tree = {"loss": loss, "gradients": gradients, "state": aux.model_state, "reports": aux.metrics}
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            return {path_name(path): np.asarray(leaf.addressable_data(0)) for path, leaf in leaves}

        reference = outcome(1)
        assert int(reference["state/momentum/clip_pointer"]) == 8
        for count in (2, 4):
            found = outcome(count)
            for name, value in reference.items():
                # These gradients are zero but for rounding.
                scale = max(np.abs(value).max(), 1e-8 if name.endswith(ZERO) else 1e-12)
                assert np.abs(found[name] - value).max() / scale < 1e-6, f"{count} devices: {name}"


def test_level_1_and_words_see_the_global_batch_and_the_rest_its_group():
    """Two groups give the mean of what each gives alone, but for level 1, local matching and the queues."""
    config = smoke(loss__attentive_masking=False, matmul_precision="highest")
    task = get_task(config)
    batch, variables = batch_of(task), variables_of(task)
    config.batch_groups = 2
    together = outcome_of(config, batch, variables)["reports"]
    config.batch_groups, config.batch_size = 1, 2
    halves = [
        outcome_of(config, {name: value[rows] for name, value in batch.items()}, variables)["reports"]
        for rows in (slice(0, 2), slice(2, 4))
    ]
    local = ("level2_similarity_loss", "masked_lm_loss", "masked_lm_text_encoder_loss", "itm_loss", "itm_acc", "l2_mr")
    for name in local:
        np.testing.assert_allclose(together[name], (halves[0][name] + halves[1][name]) / 2, rtol=1e-4, err_msg=name)
    for name in ("VWM_after_similarity_loss", "l1_mr"):
        assert abs(together[name] - (halves[0][name] + halves[1][name]) / 2) > 1e-3, name
    # Half of the batch leaves half of the keys.
    config.batch_groups, config.batch_size = 1, 4
    whole = outcome_of(config, batch, variables)
    np.testing.assert_allclose(
        whole["reports"]["level1_similarity_loss"], together["level1_similarity_loss"], rtol=1e-5
    )


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """Return the folder of a small data set of captions."""
    folder = tmp_path_factory.mktemp("captions")
    return folder, prepared(folder)


def test_it_resumes_bit_for_bit_with_queues_and_key_encoders(captions, tmp_path):
    folder, data = captions

    def config(steps):
        made = tiny(folder, "pretraining", data, steps=steps)
        made.checkpoint.every_steps = 2
        return made

    whole = train(get_task(config(4)), config(4), tmp_path / "whole")
    train(get_task(config(2)), config(2), tmp_path / "parts")
    resumed = train(get_task(config(4)), config(4), tmp_path / "parts")
    assert int(whole.model_state[MOMENTUM]["text_pointer"]) == 0  # 16 keys, the whole queue
    for part in ("params", "model_state", "opt_state"):
        same = jax.tree.map(np.array_equal, getattr(whole, part), getattr(resumed, part))
        assert all(jax.tree.leaves(same)), part


def test_key_encoders_begin_as_copies_of_the_loaded_encoders():
    task = get_task(smoke())
    variables = variables_of(task)
    loaded = {**variables, "params": jax.tree.map(lambda x: x + 1, variables["params"])}
    copied = task.after_init(loaded)
    assert not np.array_equal(loaded[MOMENTUM]["encoders"]["visual"]["img_fc_0"]["bias"], 1)
    jax.tree.map(np.testing.assert_array_equal, copied[MOMENTUM]["encoders"], key_parameters(loaded["params"]))
    np.testing.assert_allclose(np.linalg.norm(copied[MOMENTUM]["clip_queue"], axis=1), 1, rtol=1e-5)
    assert "cross_pooler" not in copied[MOMENTUM]["encoders"]["bert"]


def test_the_cross_pooler_begins_as_the_pooler():
    bert = variables_of(get_task(smoke()))["params"]["bert"]
    jax.tree.map(np.testing.assert_array_equal, bert["cross_pooler"], bert["pooler"])


def test_bfloat16_is_within_two_percent():
    batch = batch_of(get_task(smoke()))
    variables = variables_of(get_task(smoke()))
    exact, coarse = (outcome_of(smoke(model__dtype=dtype), batch, variables) for dtype in ("float32", "bfloat16"))
    for name, value in exact["reports"].items():
        if name.endswith("loss"):
            np.testing.assert_allclose(coarse["reports"][name], value, rtol=0.02, err_msg=name)
    np.testing.assert_allclose(coarse["loss"], exact["loss"], rtol=0.02)


def test_layers_that_are_computed_again_change_nothing():
    batch = batch_of(get_task(smoke()))
    variables = variables_of(get_task(smoke()))
    plain, again = (outcome_of(smoke(model__remat=remat), batch, variables) for remat in (False, True))
    for name, value in leaves_of(plain["gradients"]).items():
        np.testing.assert_allclose(leaves_of(again["gradients"])[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("masked", ["nothing", "everything", "empty"])
def test_unusual_batches_have_finite_losses_and_gradients(masked):
    config = smoke(momentum__enabled=False)
    task = get_task(config)
    batch = batch_of(task)
    if masked == "nothing":
        batch["labels"] = np.full_like(batch["labels"], -1)
    elif masked == "everything":
        batch["labels"], batch["masked"] = batch["raw"], np.full_like(batch["raw"], 103)
    else:
        for name in ("raw", "masked", "false"):
            batch[name] = np.zeros_like(batch[name])
            batch[name][:, :2] = 101, 102
        for name in ("raw_mask", "false_mask"):
            batch[name] = np.broadcast_to(np.arange(12) < 2, batch[name].shape).astype(np.int32)
        batch["labels"] = np.full_like(batch["labels"], -1)
    found = outcome_of(config, batch)
    for name, value in leaves_of({part: found[part] for part in ("loss", "reports", "gradients")}).items():
        assert np.isfinite(value).all(), name
    if masked == "nothing":
        attentive = smoke(momentum__enabled=False, loss__attentive_masking=False)
        assert outcome_of(attentive, batch)["reports"]["masked_lm_loss"] == 0


def test_randomness_comes_from_the_step_s_key():
    config = configs.load(SMOKES["pretraining"])
    batch, variables = batch_of(get_task(config)), variables_of(get_task(config))
    first, again, other = (outcome_of(config, batch, variables, key)["loss"] for key in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("network", "millions"), [("swin", 163.2), ("resnet", 138.7), ("pvt", 139.4)])
def test_numbers_of_parameters(network, millions):
    config = default_config()
    config.model.visual = visual_network(network)
    config.words.ranks = "given"
    task = make_task(config)
    params = task.abstract_variables()["params"]
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    # The published number of PVT counts its classifier, which nothing uses.
    count += 513 * 1000 * (network == "pvt")
    assert round(count / 1e6, 1) == millions
    assert sum("word_embeddings" in name for name in leaves_of(jax.tree.map(lambda x: 0, params))) == 1


def test_pre_training_starts_each_other_head_and_all_are_evaluated(captions, tmp_path, command):
    folder, data = captions
    again = [{**row, "qid": f"{row['qid']} again"} for row in QUESTIONS]
    sets = {"questions": prepared(folder, use="questions", rows=[*QUESTIONS, *again])}
    sets["choices"] = prepared(folder, use="choices")

    def config(head, directory, **changes):
        made = tiny(folder, head, directory, **changes)
        made.evaluate.batch_size = 2
        return made

    def evaluations(**kinds):
        return {name: evaluator(kind, str(directory), "train") for name, (kind, directory) in kinds.items()}

    first = config("pretraining", data, evaluation=evaluations(held=("loss", data), zero=("retrieval", data)))
    train(get_task(first), first, tmp_path / "first")
    out, error = command("evaluate", "--workdir", tmp_path / "first")
    assert not error
    assert "total_loss" in out
    assert "l2_simi_t2v-r@1" in out

    start = {"init_from": (str(tmp_path / "first"),)}
    second = config("retrieval", data, evaluation=evaluations(test=("retrieval", data)), **start)
    train(get_task(second), second, tmp_path / "second")
    assert "l1_simi_v2t-mr" in command("evaluate", "--workdir", tmp_path / "second")[0]

    asked = evaluations(test=("answers", sets["questions"]))
    third = config("question_answering", sets["questions"], evaluation=asked, init_fresh=("^classifier/",), **start)
    train(get_task(third), third, tmp_path / "third")
    assert "accuracy" in command("evaluate", "--workdir", tmp_path / "third")[0]

    # Options are chosen by a model of retrieval that was never trained on them.
    path = tmp_path / "choices.py"
    chosen = config("multiple_choice", sets["choices"], evaluation=evaluations(test=("choices", sets["choices"])))
    path.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config(variant):\n"
        f"    return ConfigDict({chosen.to_dict()!r})\n"
    )
    out, error = command(
        "evaluate", "--config", path, "--checkpoint", tmp_path / "second", "--workdir", tmp_path / "mc"
    )
    assert not error
    assert "accuracy" in out


def tiny(folder, head, directory, **changes):
    """Return the config of a small model on prepared data, without significant words."""
    made = make_config(folder, head, directory, batch_size=4)
    small = smoke()
    with made.unlocked():
        made.model, made.momentum = small.model, small.momentum
        made.model.num_answers = 4
        made.words.matching = ""
        made.update({"batch_groups": 1, "steps": 2, "epochs": 0, "log_every": 1, **changes})
        made.checkpoint.every_steps, made.evaluate.every_steps = 0, 0
    configs.describe(made)
    return made


def test_grid_masks_are_those_of_a_canvas_per_group():
    sizes = jnp.array([[64, 96], [32, 64], [40, 50], [40, 50]])
    found = np.asarray(grid_mask(sizes, (96, 96), (3, 3), groups=2, strict=True))
    np.testing.assert_array_equal(found[0], [[1, 1, 1], [1, 1, 1], [0, 0, 0]])
    # Only what is beyond both sides is left out.
    np.testing.assert_array_equal(found[1], [[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(found[2], [[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    repaired = np.asarray(grid_mask(sizes, (96, 96), (3, 3), groups=2))
    np.testing.assert_array_equal(repaired[1], [[1, 1, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(repaired[[0, 2]], found[[0, 2]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "captioning"}, "config.head: 'captioning' is not one of 'pretraining', 'retrieval'"),
        ({"words__matching": "during"}, "config.words.matching: 'during' is not one of"),
        ({"momentum__text_queue": 3}, "config.momentum.text_queue: 3, expected at least the 4 keys of a batch"),
        ({"momentum__clip_queue": 7}, "config.momentum.clip_queue: 7, expected at least the 8 keys of a batch"),
        ({"model__heads": 5}, "config.model.heads: 5 does not divide config.model.features = 64"),
        ({"model__features": 32}, "config.model.visual.features: the last stage has 64 channels"),
        ({"loss__hard_mining": "best"}, "config.loss.hard_mining: 'best' is not one of '', 'top_k', 'nearliest'"),
    ],
)
def test_wrong_configs_are_one_line(changes, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as error:
        get_task(smoke(**changes))
    assert "\n" not in str(error.value)


def test_local_matching_needs_the_ranks_of_words():
    with pytest.raises(ConfigError, match="give the ranks of words"):
        get_task(smoke(data__synthetic=False)).train_data(DataShard(batch_size=4))


def test_a_network_without_a_name_is_one_line():
    config = smoke()
    with config.unlocked():
        config.model.visual.name = "vgg"
    with pytest.raises(ConfigError, match="'vgg' is not one of swin, pvt, resnet"):
        get_task(config)
