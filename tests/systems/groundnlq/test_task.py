"""GroundNLQ as a task: from files to found moments, the same on any number of devices, in any bucket."""

import dataclasses
import io
import json
import re

import cases
import jax
import jax.numpy as jnp
import lmdb
import nlq_files
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from data_prep.groundnlq import prepare as preparation
from vlm_jax import config as configs
from vlm_jax import inference
from vlm_jax.data.synthetic import SyntheticPipeline
from vlm_jax.errors import ConfigError
from vlm_jax.extraction import Extractor
from vlm_jax.systems.groundnlq import answers, data, samples
from vlm_jax.systems.groundnlq import interop as names
from vlm_jax.systems.groundnlq.predict import make_predictor
from vlm_jax.systems.groundnlq.task import make_model, make_sample_spec, open_store
from vlm_jax.task import get_task
from vlm_jax.train import evaluate, sharding
from vlm_jax.train.checkpoint import checkpoint_folder, restore_variables
from vlm_jax.train.loop import train
from vlm_jax.train.optimizer import parameter_names, path_name
from vlm_jax.train.setup import prepare
from vlm_jax.types import DataShard

SMOKE = "configs/groundnlq_scratch.py:smoke"


@pytest.fixture(autouse=True)
def in_checkout(root, monkeypatch):
    monkeypatch.chdir(root)


def small(**changes):
    """A smoke config with two levels, which compiles sooner."""
    config = configs.load(SMOKE)
    config.model.plain_blocks, config.model.ranges = 1, ((0, 16), (8, 10000))
    config.data.buckets = (32, 64)
    for key, value in changes.items():
        section, _, leaf = key.rpartition("__")
        (config[section] if section else config)[leaf] = value
    return config


@pytest.mark.parametrize(
    ("name", "batch", "groups", "rate", "epochs", "warmup"),
    [
        ("groundnlq_pretrain.py", 16, 4, 2e-4, 10, 4),
        ("groundnlq_scratch.py", 4, 2, 1e-4, 13, 5),
        ("groundnlq_finetune.py", 2, 1, 2.5e-5, 10, 4),
        ("groundnlq_finetune.py:train_val", 2, 1, 2.5e-5, 10, 4),
        ("groundnlq_star.py", 4, 2, 1e-4, 13, 5),
        ("groundnlq_star.py:pretrain", 16, 4, 2e-4, 10, 4),
        ("groundnlq_star.py:finetune", 2, 1, 2.5e-5, 10, 4),
    ],
)
def test_published_recipes(name, batch, groups, rate, epochs, warmup):
    config = configs.load(f"configs/{name}")
    assert (config.batch_size, config.batch_groups, config.schedule.learning_rate) == (batch, groups, rate)
    assert (config.epochs, config.schedule.warmup_epochs) == (epochs, warmup)
    assert config.data.jitter == ("pretrain" in name)
    assert ("validation" in config.data.split) == ("train_val" in name)
    assert config.model.cross_blocks == (6 if "star" in name else 0)
    task = get_task(config)
    assert task.batch_specs["2560"]["class_targets"].shape == (batch, 5080, 1)


def test_fine_tuning_starts_the_heads_afresh_and_nothing_else(root):
    manifest = cases.Case(root / "tests/golden/groundnlq/parameters.json").manifest
    for name, system in (("groundnlq_finetune.py", "groundnlq"), ("groundnlq_star.py:finetune", "groundnlq_star")):
        config = configs.load(f"configs/{name}")
        variables = get_task(config).abstract_variables()
        assert variables.keys() == {"params"}, "the running counts are the run's"
        params = variables["params"]
        leaves, tree = jax.tree.flatten(params)
        marked = [
            np.full(leaf.shape, any(re.search(e, n) for e in config.init_fresh), bool)
            for n, leaf in zip(parameter_names(params), leaves, strict=True)
        ]
        ours = names.to_state_dict({"params": jax.tree.unflatten(tree, marked)})
        fresh = {key for key, value in ours.items() if value.any()}
        assert fresh == set(manifest[system]["reinitialised_when_finetuning"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__windows": (5, 5, 5, 5)},
            "config.model.windows: 4 windows, expected 1, or 2 for the stem and 1 block",
        ),
        ({"model__heads": 3}, "config.model.heads: 3 heads do not divide config.model.dim = 16"),
        ({"model__ranges": ((0, 9),)}, "config.model.ranges: 1 ranges, expected one for each of 2 levels"),
        (
            {"data__buckets": (32,)},
            "config.data.buckets: .32., expected the last one to be config.model.max_length = 64",
        ),
        ({"data__buckets": (31, 64)}, "config.data.buckets: 31 is no multiple of the last level's stride 2"),
        ({"decoding__suppression": "some"}, "config.decoding.suppression: 'some' is not one of soft, hard, none"),
        ({"decoding__decay": "cubic"}, "config.decoding.decay: 'cubic' is not one of hard, linear, gaussian"),
        ({"decoding__vote": 0.5}, "config.decoding.vote: 0.5, expected 0 where config.decoding.per_class is set"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        get_task(small(**changes))


def test_questions_have_one_class(folder):
    config = nlq_files.configure(small(model__classes=2), folder)
    with pytest.raises(ConfigError, match=r"config\.model\.classes: 2, expected 1 for training"):
        get_task(config).train_data(DataShard(0, 1, config.batch_size, 0))


def test_a_config_reaches_every_option_of_the_model_and_of_decoding():
    model = {"embedding_kernel": 1, "embedding_norm": False, "neck_norm": False, "relative_bias": True}
    model |= {"head_kernel": 1, "head_layers": 2, "head_norm": False, "classes": 2, "empty_classes": (1,)}
    decoding = {"decay": "linear", "per_class": False, "vote": 0.5}
    config = small(**{f"model__{name}": value for name, value in model.items()})
    config.decoding.update(decoding)
    found, options = make_model(config), answers.make_decoding(config)
    assert {name: getattr(found, name) for name in model} == model
    assert {name: getattr(options, name) for name in decoding} == decoding
    shapes = get_task(config).abstract_variables()
    names_of = parameter_names(shapes["params"])
    assert not any("embedding_norm" in name or "neck_norm" in name for name in names_of)
    source = names.to_state_dict(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    sizes = names.model_options(source)["model"]
    assert {name: sizes[name] for name in model if name in sizes} == {
        name: value for name, value in model.items() if name not in ("relative_bias", "empty_classes")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return nlq_files.prepare(nlq_files.write(tmp_path_factory.mktemp("nlq"), clips=32))


def trained(folder, **changes):
    config = nlq_files.configure(small(**changes), folder)
    config.batch_size, config.log_every, config.checkpoint.every_steps = 8, 100, 1000
    config.model.text_blocks, config.model.dim, config.model.head_dim, config.model.drop_path = 0, 32, 32, 0.01
    config.schedule.learning_rate, config.schedule.warmup_steps = 5e-3, 10
    # Every question by itself, so that asking for a few of them gives the same answers.
    config.evaluate.reference_batch = 1
    return config


def test_it_resumes_bit_for_bit(folder, tmp_path):
    """In the middle of the second epoch: parameters, their average, optimiser, running counts."""
    config = trained(folder)
    config.steps, config.schedule.decay_steps = 16, 300
    whole = train(get_task(config), config, tmp_path / "whole")
    config.steps = 11
    train(get_task(config), config, tmp_path / "parts")
    config.steps = 16
    resumed = train(get_task(config), config, tmp_path / "parts")
    for part in ("params", "ema_params", "model_state", "opt_state"):
        same = jax.tree.map(np.array_equal, getattr(whole, part), getattr(resumed, part))
        assert all(jax.tree.leaves(same)), part
    counts = np.asarray(whole.model_state["loss"]["normaliser"])
    assert counts.shape == (2,)
    assert counts[0] != counts[1]
    assert (counts < 100).all()


def test_it_learns_and_writes_what_it_found(folder, tmp_path):
    config = trained(folder)
    config.steps, config.schedule.decay_steps = 300, 300
    train(get_task(config), config, tmp_path / "run")
    task, mesh = get_task(config), sharding.make_mesh(config.mesh)
    variables = restore_variables(checkpoint_folder(tmp_path / "run"), task.abstract_variables())
    average = restore_variables(checkpoint_folder(tmp_path / "run"), task.abstract_variables(), average=True)
    evaluator = task.evaluators["validation"]
    evaluation = evaluate.run(evaluator, variables, mesh, 8)
    found = evaluation.metrics
    assert found["queries"] == 24
    assert found["R1@0.3"] > 80
    assert found["mIoU"] > 60
    assert found["R5@0.5"] >= found["R1@0.5"]
    assert evaluate.run(evaluator, variables, mesh, 3).metrics == pytest.approx(found, abs=1e-3)
    assert evaluate.run(evaluator, average, mesh, 8).metrics != found
    for name in ("validation", "test"):
        result = evaluate.run(task.evaluators[name], variables, mesh, 8)
        evaluate.write_results(tmp_path / "results", name, result, task.evaluators[name], {})
    assert result.metrics == {"queries": 24.0}, "the test split has no truth"
    written = json.loads((tmp_path / "results" / "test_submission.json").read_text())
    assert (written["version"], written["challenge"]) == ("1.0", "ego4d_nlq_challenge")
    assert [(entry["annotation_uid"], entry["query_idx"]) for entry in written["results"][:3]] == [
        ("ann3", 0),
        ("ann3", 2),
        ("ann3", 3),
    ]
    lines = [json.loads(line) for line in (tmp_path / "results" / "validation_queries.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    for line in lines:
        times = np.array(line["seconds"])
        assert (times[:, 0] >= 0).all()
        assert (np.diff(times[:, 2]) <= 0).all()
    # The predictor gives the same answers, by video alone and by features of words.
    config.predict.split = "validation"
    predictor = make_predictor(config, variables, Extractor(config, inference.load))
    asked = predictor.predict([{"video": lines[0]["video"]}, {"video": "nowhere"}], 5)
    assert [line["qid"] for line in asked.lines] == [line["qid"] for line in lines[:3]]
    for ours, line in zip(asked.lines, lines, strict=False):
        np.testing.assert_allclose(ours["seconds"], line["seconds"], atol=1e-3)
    assert asked.missing[0][0] == "nowhere"
    tokens = np.load(folder / "text" / f"{lines[0]['qid']}.npz")["token_features"]
    request = {"video": lines[0]["video"], "qid": "mine", "query": "where?", "vector": tokens}
    mine = predictor.predict([request], 3)
    assert len(mine.lines[0]["seconds"]) == 3
    assert mine.lines[0]["qid"] == "mine"


def test_warm_start_keeps_all_but_the_heads_and_the_run_s_own_state(folder, tmp_path):
    config = trained(folder, steps=2, init_fresh=())
    config.checkpoint.every_steps = 2
    first = train(get_task(config), config, tmp_path / "first")
    again = trained(folder, steps=1)
    # Another number of groups is another number of running counts, and no hindrance.
    again.batch_groups, again.schedule.learning_rate = 1, 0.0
    again.init_from, again.init_fresh = (str(tmp_path / "first"),), (r"^(class|offset)_head/", r"^level_scale_\d+$")
    second = train(get_task(again), again, tmp_path / "second")
    new = jax.tree_util.tree_leaves_with_path(second.params)
    for (path, ours), theirs in zip(new, jax.tree.leaves(first.params), strict=True):
        name = path_name(path)
        head = name.startswith(("class_head/", "offset_head/", "level_scale_"))
        if head and name.endswith("kernel"):
            assert not np.array_equal(ours, theirs), name
        if not head:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert second.model_state["loss"]["normaliser"].shape == (1,)
    again.init_fresh = ("no_such_head",)
    with pytest.raises(ConfigError, match=r"config.init_fresh: 'no_such_head' matches no"):
        train(get_task(again), again, tmp_path / "third")


def moments(task, variables, name, size, folder):
    found = evaluate.run(task.evaluators[name], variables, sharding.make_mesh(configs.load(SMOKE).mesh), size)
    evaluate.write_results(folder, name, found, task.evaluators[name], {})
    written = (folder / f"{name}_queries.jsonl").read_text().splitlines()
    return [np.array(json.loads(line)["seconds"]) for line in written]


def random_variables(task, scale=0.5):
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), task.abstract_variables()
    )


def test_buckets_and_batches_change_no_answer(folder, tmp_path):
    bucketed, full = (nlq_files.configure(small(data__buckets=buckets), folder) for buckets in ((40, 64), (64,)))
    variables = random_variables(get_task(full))
    reference = moments(get_task(full), variables, "validation", 8, tmp_path)
    lengths = {
        batch["video"].shape[1] for batch in get_task(bucketed).evaluators["validation"].data(DataShard(0, 1, 4))
    }
    assert lengths == {40, 64}
    found = moments(get_task(bucketed), variables, "validation", 4, tmp_path)
    for ours, theirs in zip(found, reference, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def questions(config, split):
    return data.load_queries(config.data.queries, split, make_sample_spec(config))


def test_longer_clips_are_answered_by_windows(folder, tmp_path):
    config = nlq_files.configure(small(data__buckets=(32,), model__max_length=32), folder)
    task = get_task(config)
    queries, store = questions(config, "validation"), open_store(config, config.data.features)
    store.load(query.clip for query in queries)
    windows = samples.windows(queries, store, 32)
    assert task.evaluators["validation"].data(DataShard(0, 1, 4)).epoch_examples() == len(windows) > len(queries)
    for number, query in enumerate(queries):
        own = [window for window in windows if window.query == number]
        covered = {place for window in own for place in range(window.start, window.start + window.length)}
        assert covered == set(range(store.length(query.clip)))
        assert all(window.length <= 32 for window in own)
    found = moments(task, random_variables(task), "validation", 4, tmp_path)
    late = 0
    for query, answer in zip(queries, found, strict=True):
        assert 0 < len(answer) <= 5
        assert (np.diff(answer[:, 2]) <= 0).all()
        assert answer[:, 1].max() <= query.duration + 1e-3
        late += answer[:, 1].max() > 32 * nlq_files.SECONDS
    assert late


def test_what_windows_show_twice_is_told_once():
    one = np.array([[0.0, 10.0, 0.9], [20.0, 30.0, 0.4]])
    other = np.array([[20.0, 30.0, 0.8], [40.0, 50.0, 0.3]])
    merged = answers.merge([one, other], 5, 0.75)
    np.testing.assert_allclose(merged[:, 0], [0, 20, 40, 20])
    np.testing.assert_allclose(merged[:, 2], [0.9, 0.8, 0.3, 0.4 * np.exp(-1 / 0.75)])
    assert len(answers.merge([one, other], 2, 0.75)) == 2


def test_a_question_without_any_moment_gets_its_whole_clip(folder, tmp_path):
    config = nlq_files.configure(small(decoding__score_threshold=2.0), folder)
    task = get_task(config)
    found = moments(task, random_variables(task), "test", 4, tmp_path)
    for query, answer in zip(questions(config, "test"), found, strict=True):
        np.testing.assert_array_equal(answer, [[0, query.duration, 0]])


def test_names_of_another_form_make_no_submission():
    query = samples.Question("mine", "clip", "?", 9.0, np.zeros((0, 2)), np.zeros((1, 4)))
    found = np.tile([[1.0, 2.0, 0.5]], (12, 1))
    assert answers.submission([query], [found]) is None
    made = answers.submission([dataclasses.replace(query, qid="a_7")], [found])["results"]
    assert made[0]["query_idx"] == 7
    assert len(made[0]["predicted_times"]) == 10


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_loss_gradients_and_counts_are_the_same_on_any_number_of_devices(groups):
    """With residuals dropped: the draws, too, are the batch's and not the devices'."""
    config = small(batch_size=4, batch_groups=groups, data__buckets=(64,))
    task = get_task(config)
    (specs,) = task.batch_specs.values()
    batch = dict(next(iter(SyntheticPipeline(specs, DataShard(batch_size=4, seed=2)))))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), random_variables(task)["params"])
        batch |= {name: value.astype(np.float64) for name, value in batch.items() if value.dtype == np.float32}
        state = {"loss": {"normaliser": np.full(groups, 5.0)}}
        gradient = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))
        found = {}
        for count in (1, 2, 4):
            devices = np.array(jax.devices()[:count]).reshape(count, 1)
            mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
            place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            placed = jax.device_put((wide, state), place)
            found[count] = jax.device_get(gradient(*placed, sharding.shard_batch(mesh, batch), jax.random.key(0)))
    counts = found[1][0][1].model_state["loss"]["normaliser"]
    positives = ((batch["class_targets"].sum(-1) > 0) & all_masks(batch)).reshape(groups, -1).sum(1)
    np.testing.assert_allclose(counts, 0.9 * 5 + 0.1 * positives)
    for count in (2, 4):
        for (path, leaf), other in zip(
            jax.tree_util.tree_leaves_with_path(found[1]), jax.tree.leaves(found[count]), strict=True
        ):
            # What is added to all keys has no gradient but rounding.
            assert np.abs(other - leaf).max() < 1e-8 * np.abs(leaf).max() + 1e-14, f"{count}: {path_name(path)}"


def all_masks(batch):
    return np.concatenate([batch["video_mask"][:, :: 2**level] for level in range(2)], 1)


def test_the_reference_s_answers_from_an_lmdb_to_the_result_file(root, tmp_path):
    """Golden case `end_to_end` by way of the preparation, the records, the evaluator and the file that it writes."""
    case = cases.Case(root / "tests/golden/groundnlq/end_to_end.json")
    wanted, test, records = case.config["model"], case.config["test_cfg"], case.manifest["records_in_order"]
    for kind, key in (("video", "features"), ("text", "token_features")):
        with lmdb.open(str(tmp_path / kind), map_size=1 << 24) as environment, environment.begin(write=True) as values:
            for name, array in case.group(f"in/{kind}/").items():
                buffer = io.BytesIO()
                np.savez_compressed(buffer, **{key: array, "allow_pickle": np.array(True)})
                values.put(name.encode(), buffer.getvalue())
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    video, text = wanted["input_vid_dim"], wanted["input_txt_dim"]
    words = ["features", "--features", tmp_path / "video", "--dim", video, "--output", tmp_path / "features"]
    preparation.main([str(word) for word in words])
    words = ["queries", "--annotations", tmp_path / "test.jsonl", "--text", tmp_path / "text", "--dim", text]
    preparation.main([str(word) for word in [*words, "--split", "validation", "--output", tmp_path / "queries"]])
    config = nlq_files.configure(configs.load(SMOKE), tmp_path)
    config.data.feature_stride, config.data.fps = 16.043, 30.0
    layers, text_blocks, stem, cross, plain = wanted["backbone_arch"]
    sizes = {"video_dim": video, "text_dim": text, "dim": wanted["embd_dim"], "head_dim": wanted["head_dim"]}
    sizes |= {"heads": wanted["n_head"], "embedding_layers": layers, "text_blocks": text_blocks, "stem_blocks": stem}
    sizes |= {"cross_blocks": cross, "plain_blocks": plain, "windows": (wanted["n_mha_win_size"],)}
    sizes |= {"max_length": wanted["max_seq_len"], "ranges": tuple(map(tuple, wanted["regression_range"]))}
    config.model.update(sizes)
    config.data.buckets, config.text.max_tokens = (128, wanted["max_seq_len"]), 20
    config.evaluate.reference_batch = len(case.manifest["batches"][0])
    config.decoding.update(
        {
            "score_threshold": test["pre_nms_thresh"],
            "candidates_per_level": test["pre_nms_topk"],
            "duration_threshold": test["duration_thresh"],
            "min_score": test["min_score"],
            "sigma": test["nms_sigma"],
            "max_moments": test["max_seg_num"],
        }
    )
    task = get_task(config)
    variables = names.to_variables(case.weights(), task.abstract_variables())
    evaluator = task.evaluators["validation"]
    result = evaluate.run(evaluator, variables, sharding.make_mesh(config.mesh), 4)
    evaluate.write_results(tmp_path / "results", "validation", result, evaluator, {})
    ours = json.loads((tmp_path / "results" / "validation_submission.json").read_text())
    reference = case.manifest["result_file"]
    assert [{**entry, "predicted_times": 0} for entry in ours["results"]] == [
        {**entry, "predicted_times": 0} for entry in reference["results"]
    ]
    for mine, theirs in zip(ours["results"], reference["results"], strict=True):
        np.testing.assert_allclose(
            mine["predicted_times"], theirs["predicted_times"], atol=case.tolerance["out"]["atol"]
        )


def test_the_sample_spec_comes_from_the_config():
    config = configs.load("configs/groundnlq_pretrain.py")
    assert make_sample_spec(config).jitter
    assert not make_sample_spec(config, train=False).jitter, "only what is trained on is jittered"
    assert make_sample_spec(config) == samples.SampleSpec(
        buckets=(1024, 1536, 2048, 2560), max_tokens=75, groups=4, jitter=True, reference_batch=16
    )
    mesh = sharding.make_mesh(config.mesh)
    setup = prepare(get_task(small()), small(), mesh, total_steps=4, steps_per_epoch=2)
    assert setup.abstract.model_state["loss"]["normaliser"].shape == (2,), "saved with the run"
