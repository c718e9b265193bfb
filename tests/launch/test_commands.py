"""The commands as a person runs them: processes of their own, real files, kills included."""

import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import recipe

from data_prep.milnce import prepare as milnce
from vlm_jax import inference
from vlm_jax.interop import torch_files
from vlm_jax.interop.rules import flatten
from vlm_jax.models.s3d import S3D
from vlm_jax.systems.milnce import interop as names
from vlm_jax.systems.milnce.model import MilNce, TextTower

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.py"))
CLIPS = "data_prep/clips"


def environment(root, **more):
    return {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"} | more


def command(root, *words, **more):
    """Runs a command to its end and returns what it printed; fails with its errors."""
    arguments = [sys.executable, *map(str, words)]
    done = subprocess.run(arguments, cwd=root, env=environment(root, **more), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_process(root, monkeypatch, *words):
    """Runs a command in this process; for what ends before much happens."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    monkeypatch.syspath_prepend(str(root / "launch"))
    runpy.run_path(str(words[0]), run_name="__main__")


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def arrays(step_folder):
    """Every array of a checkpoint, by name."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(step_folder.absolute() / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    data = [
        (path, jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for path, leaf in leaves
    ]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in data}


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory):
    """Training and retrieval shards of the packaged clips, and the overrides that point to them."""
    folder = tmp_path_factory.mktemp("prepared")
    lists = ["--list", f"{CLIPS}/videos.csv", "--captions", f"{CLIPS}/captions"]

    def prepare(*words):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            milnce.main([str(word) for word in words])

    prepare("vocabulary", *lists, "--output", folder / "words.npy", "--rows", 300)
    sizes = "--short_side 40 --smallest_side 32 --segment_seconds 3 --epoch segments --clip_seconds 1.6 --min_time 2"
    shards = ["--num_shards", 3, "--min_seconds", 1.6]
    prepare("howto100m", *lists, "--videos", CLIPS, "--output", folder / "clips", *sizes.split(), *shards)
    sizes = "--windows 2 --num_frames 8 --fps 5 --size 32 --num_shards 2"
    queries = ["--csv", f"{CLIPS}/queries.csv", "--videos", CLIPS, "--output", folder / "queries"]
    prepare("segments", *queries, *sizes.split())
    small = {
        "batch_size": 4,
        "batch_groups": 2,
        "steps": 6,
        "log_every": 1,
        "data.directory": folder / "clips",
        "data.streams": 2,
        "data.block": 4,
        "text.vocabulary": folder / "words.npy",
        "retrieval.clips.directory": folder / "queries",
        "clips.size": 32,
        "model.width": 0.125,
        "schedule.warmup_steps": 0,
        "schedule.learning_rate": 1e-5,
        "checkpoint.every_steps": 3,
        "evaluate.at_start": False,
        "evaluate.names": "()",
    }
    overrides = [f"--config.{key}={value}" for key, value in small.items()]
    return ["--config", "configs/milnce_quickstart.py", *overrides]


@pytest.fixture(scope="module")
def trained(root, prepared, tmp_path_factory):
    """A run of six steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    command(root, "launch/train.py", *prepared, "--workdir", workdir)
    return workdir


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
from vlm_jax.train.metrics_log import MetricsLog
workdir = Path(sys.argv[sys.argv.index("--workdir") + 1])
write = MetricsLog.write

def dies(self, step, metrics):
    write(self, step, metrics)
    if step == 5:
        while not (workdir / "checkpoints" / "00000003").exists():
            pass
        os.kill(os.getpid(), signal.SIGKILL)

MetricsLog.write = dies
sys.argv[0] = "launch/train.py"
sys.path.insert(0, "launch")
runpy.run_path("launch/train.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def killed(root, prepared, tmp_path_factory):
    """A run that was killed after its fifth step, three of which were saved."""
    workdir = tmp_path_factory.mktemp("runs") / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *prepared, "--workdir", str(workdir)], cwd=root, env=environment(root)
    )
    assert done.returncode == -signal.SIGKILL
    assert lines(workdir)[-1]["step"] == 5
    return workdir


def test_three_steps_kill_and_three_more_are_six(root, prepared, trained, killed, tmp_path):
    """Bit for bit: every array of the state, and every logged loss, so the order of the data too."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    said = command(root, "launch/train.py", *prepared, "--workdir", tmp_path)
    assert f"resumed from step 3 of {tmp_path}" in said
    ours, whole = (arrays(folder / "checkpoints" / "00000006") for folder in (tmp_path, trained))
    assert ours.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(ours[name], whole[name], err_msg=name)
    tables = [name for name in whole if "word_embd" in name]
    assert len(tables) == 1, "the frozen table has no optimiser state"
    before = arrays(trained / "checkpoints" / "00000003")
    np.testing.assert_array_equal(before[tables[0]], whole[tables[0]])
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (line["step"], line["loss"]) for line in lines(trained)
    ]


@pytest.mark.slow
def test_one_process_resumes_as_two(root, prepared, trained, killed, tmp_path):
    """The same examples in the same order: the losses are those of one process but for rounding."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = {"VLM_COORDINATOR": f"127.0.0.1:{port}", "VLM_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "launch/train.py",
                *prepared,
                "--config.evaluate.names=('clips',)",
                "--workdir",
                str(tmp_path),
            ],
            cwd=root,
            env=environment(root, **cluster, VLM_PROCESS_ID=str(number)),
        )
        for number in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    ours, whole = ([line["loss"] for line in lines(folder) if "loss" in line] for folder in (tmp_path, trained))
    assert ours[:3] == whole[:3]
    np.testing.assert_allclose(ours, whole, rtol=1e-3)
    evaluated = lines(tmp_path)[-1]
    assert evaluated["clips/queries"] == 21, "21 items over batches of 8 on two processes: none lost, none twice"
    alone = ["--workdir", str(tmp_path), "--evaluator", "clips"]
    command(root, "launch/evaluate.py", *prepared, *alone)
    metrics = json.loads((tmp_path / "results" / "clips.json").read_text())["metrics"]
    assert {name: evaluated[f"clips/{name}"] for name in metrics} == pytest.approx(metrics, abs=1e-6)


def test_evaluation_from_the_restored_checkpoint(root, prepared, trained, monkeypatch, capsys):
    said = command(root, "launch/evaluate.py", *prepared, "--workdir", trained)
    assert "R@10" in said
    results = json.loads((trained / "results" / "clips.json").read_text())
    assert results["metrics"]["queries"] == 21
    assert results["protocol"]["windows"] == 2
    assert results["checkpoint"].endswith("checkpoints/00000006")
    rankings = json.loads((trained / "results" / "clips_rankings.json").read_text())
    ranks = [query["rank"] for query in rankings]
    assert np.mean(np.array(ranks) <= 10) == pytest.approx(results["metrics"]["R@10"])
    in_process(root, monkeypatch, "launch/figures.py", "table", f"{trained}:clips=packaged clips")
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == ["queries", "R@1", "R@5", "R@10", "median", "rank"]
    assert [line.split()[-5] for line in said.splitlines()[1:]] == ["trained", "chance"]
    assert said.splitlines()[1].startswith("packaged clips  21")
    picture = trained / "figures" / "retrieval.png"
    rankings = trained / "results" / "clips_rankings.json"
    drawn = ["--results", rankings, "--videos", CLIPS, "--output", picture]
    in_process(root, monkeypatch, "launch/figures.py", "retrieval", *drawn)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_python_interface(root, trained):
    model = inference.load(trained)
    sentences = ["a bird stands on a branch and sings", "a racing car drives past"]
    text = model.encode_text(sentences)
    video = model.encode_video(root / CLIPS / "bunny.mp4", start=16.0)
    assert (video.shape, text.shape) == ((128,), (2, 128))
    assert np.isfinite(text @ video).all()
    frames = np.zeros((3, 8, 32, 32, 3), np.uint8)
    assert model.encode_video(frames).shape == (3, 128)
    assert model.video_features(frames[0]).ndim == 1
    with pytest.raises(ValueError, match=r"expected uint8 \[T, H, W, 3\], found float64"):
        model.encode_video(frames / 255)
    with pytest.raises(ValueError, match="expected a list of sentences"):
        model.encode_text("one sentence")


SMOKE = """
import pathlib, runpy, sys, traceback
sys.path.insert(0, "launch")
folder = pathlib.Path(sys.argv[1])
for config in sys.argv[2:]:
    workdir = folder / pathlib.Path(config).stem
    sys.argv = ["launch/train.py", "--config", f"{config}:smoke", "--workdir", str(workdir)]
    try:
        runpy.run_path("launch/train.py", run_name="__main__")
    except BaseException:
        print(config, traceback.format_exc(), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def smoke_runs(root, tmp_path_factory):
    """The smoke runs of all configs, one after the other in one process, and what it printed to stderr."""
    folder = tmp_path_factory.mktemp("smoke")
    words = [sys.executable, "-c", SMOKE, str(folder), *map(str, CONFIGS)]
    done = subprocess.run(words, cwd=root, env=environment(root), text=True, capture_output=True)
    return folder, done.stderr


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_a_smoke_run(smoke_runs, config):
    """Offline, every step logged, a checkpoint on the way."""
    folder, errors = smoke_runs[0] / config.stem, smoke_runs[1]
    assert (folder / "metrics.jsonl").is_file(), errors
    logged = lines(folder)
    assert [line["step"] for line in logged] == list(range(1, len(logged) + 1))
    assert all(np.isfinite(line["loss"]) for line in logged)
    assert len(list((folder / "checkpoints").iterdir())) >= 2
    assert str(config) not in errors, errors


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_smoke_run_takes_less_than_a_minute(root, config, tmp_path):
    """Run with nothing beside it: what the README promises is time on a clock."""
    began = time.monotonic()
    command(root, "launch/train.py", "--config", f"{config}:smoke", "--workdir", tmp_path)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_sigterm_says_what_it_saved(root, tmp_path):
    arguments = ["--config", "configs/milnce_howto100m.py:smoke", "--config.steps=100000", "--workdir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "launch/train.py", *arguments],
        cwd=root,
        env=environment(root),
        text=True,
        stdout=subprocess.PIPE,
    )
    while not (tmp_path / "metrics.jsonl").exists() or not lines(tmp_path):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "told to stop: saved step" in said
    assert "the same command resumes there" in said


def test_benchmark_prints_one_line_of_json(root, prepared, monkeypatch, capsys):
    said = command(root, "launch/benchmark.py", "--config", "configs/milnce_howto100m.py:smoke", "--steps", 3, "--json")
    figures = json.loads(said.splitlines()[-1])
    wanted = {"seconds_per_step", "examples_per_second", "compile_seconds", "peak_memory", "flops_per_step", "device"}
    assert wanted <= figures.keys()
    assert figures["flops_per_step"] > 1e6
    assert figures["peak_memory"] > 1e5
    words = ["--config", "configs/groundnlq_scratch.py:smoke", "--encoder", "moments", "--steps", 3, "--json"]
    encoding = json.loads(command(root, "launch/benchmark.py", *words).splitlines()[-1])
    assert wanted <= encoding.keys()
    assert encoding["steps"] == 3
    in_process(root, monkeypatch, "launch/benchmark.py", *prepared, "--input", "--steps", 3, "--json")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["examples_per_second"] > 0
    assert figures["examples_per_core_second"] * figures["cores_used"] == pytest.approx(figures["examples_per_second"])
    # Some 75 seconds of film 40 pixels high: kilobytes a second, not megabytes.
    assert 1e-3 < figures["gigabytes_per_hour_of_video"] < 1


def reference_checkpoint(space_to_depth=False):
    """A state dict as the reference saves it, with a small word table and made weights."""
    model = MilNce(S3D(space_to_depth=space_to_depth), TextTower(rows=40))
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4, 32, 32, 3)), np.zeros((1, 3), int))
    empty = names.to_state_dict(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    assert len(empty) == 537
    return {name: recipe.weight(name, value.shape) for name, value in empty.items()}


def test_convert_evaluate_and_reverse(root, tmp_path, monkeypatch, capsys):
    """A training file with its prefix goes in, the same names and numbers come out; the embedding is the model's."""
    source = reference_checkpoint()
    checkpoint = {"epoch": 300, "state_dict": {f"module.{name}": value for name, value in source.items()}}
    torch_files.save(tmp_path / "epoch0300.pth.tar", {**checkpoint, "optimizer": {}, "scheduler": {}})
    arguments = ["launch/convert_checkpoint.py", "--system", "milnce", "--source", tmp_path / "epoch0300.pth.tar"]
    in_process(root, monkeypatch, *arguments, "--output", tmp_path / "ours")
    assert "537 arrays" in capsys.readouterr().out
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model"]["space_to_depth"] is False

    model = inference.load(tmp_path / "ours")
    own = names.to_variables(source)
    for name, value in flatten(own).items():
        np.testing.assert_array_equal(flatten(model.variables)[name], value, err_msg=name)

    reverse = ["launch/convert_checkpoint.py", "--system", "milnce", "--reverse", "--source", tmp_path / "ours"]
    in_process(root, monkeypatch, *reverse, "--output", tmp_path / "back.pth", "--epoch", 300)
    back = torch_files.load(tmp_path / "back.pth")
    assert list(back) == ["epoch", "state_dict"], "what the reference's scripts tell a training checkpoint by"
    assert back["epoch"] == 300
    assert back["state_dict"].keys() == checkpoint["state_dict"].keys()
    in_process(root, monkeypatch, *reverse, "--output", tmp_path / "bare.pth", "--bare")
    bare = torch_files.load(tmp_path / "bare.pth")
    assert bare.keys() == source.keys(), "as pretrain_cnn_path of training takes it"
    for name, value in source.items():
        for found in (bare[name], back["state_dict"][f"module.{name}"]):
            np.testing.assert_array_equal(found, value, err_msg=name)
            assert found.dtype == value.dtype


def test_a_released_file_is_told_by_its_stem(root, tmp_path, monkeypatch):
    source = reference_checkpoint(space_to_depth=True)
    torch_files.save(tmp_path / "s3d_howto100m.pth", source)
    arguments = ["launch/convert_checkpoint.py", "--system", "milnce", "--source", tmp_path / "s3d_howto100m.pth"]
    in_process(root, monkeypatch, *arguments, "--output", tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model"]["space_to_depth"] is True
    reverse = ["launch/convert_checkpoint.py", "--reverse", "--source", tmp_path / "ours"]
    in_process(root, monkeypatch, *reverse, "--output", tmp_path / "back.pth")
    assert torch_files.load(tmp_path / "back.pth").keys() == source.keys(), "bare, as it was released"


def hostile(folder):
    """Files that are no MIL-NCE checkpoint, and what is to be said of each."""
    (folder / "hostile.pth").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    (folder / "text.pth").write_text("not a checkpoint")
    torch_files.save(folder / "other.pth", {"backbone.weight": np.zeros((2, 2), np.float32)})
    source = reference_checkpoint()
    extra = {**source, "extra.fc.weight": np.zeros((2, 2), np.float32)}
    torch_files.save(folder / "extra.pth", extra)
    missing = {name: value for name, value in source.items() if name != "fc.bias"}
    torch_files.save(folder / "missing.pth", missing)
    torch_files.save(folder / "mixed.pth", {"module.fc.weight": np.zeros((2, 2), np.float32), **source})
    return {
        "hostile.pth": "os.system",
        "text.pth": "text.pth",
        "none.pth": "none.pth",
        "other.pth": "not a MIL-NCE checkpoint",
        "extra.pth": "extra",
        "missing.pth": "params/video/fc/bias",
        "mixed.pth": "module.",
    }


def test_what_is_no_checkpoint_is_said_in_words(root, tmp_path, monkeypatch, capsys):
    for name, message in hostile(tmp_path).items():
        arguments = ["launch/convert_checkpoint.py", "--system", "milnce", "--source", tmp_path / name]
        with pytest.raises(SystemExit) as stopped:
            in_process(root, monkeypatch, *arguments, "--output", tmp_path / "out")
        assert stopped.value.code == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert message in said, name
        assert not (tmp_path / "out" / "state").exists()
    assert not (root / "owned").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.bacth_size=4"], "the config has no key 'bacth_size'; did you mean 'batch_size'?"),
        (["--config.batch_size=many"], "override batch_size: expected int, found 'many'"),
        (["--config.batch_size=5"], "config.batch_groups: 2 does not divide config.batch_size = 5"),
        (["--config.data.synthetic=False"], "vocabulary (no path): no such file (config.text.vocabulary)"),
        (["--config.model.blocks=('3b','9z')"], "config.model.blocks: '9z' is not one of"),
        (["--config.model.weight_init=orthogonal"], "config.model.weight_init: 'orthogonal' is not one of"),
        (["--config.init_from=nowhere"], "checkpoint nowhere: no checkpoint there"),
        (["--config.text.word2vec=nowhere.pth"], "nowhere.pth"),
    ],
)
def test_one_line_for_what_cannot_be_trained(root, tmp_path, monkeypatch, capsys, arguments, message):
    words = ["launch/train.py", "--config", "configs/milnce_howto100m.py:smoke", *arguments, "--workdir", tmp_path]
    with pytest.raises(SystemExit) as stopped:
        in_process(root, monkeypatch, *words, "--config.mesh.data=4", "--config.batch_groups=2")
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("configs/nothing.py", "config configs/nothing.py: no such file"),
        ("configs/milnce_howto100m.py:smoek", "no variant 'smoek'; it has short, paper, smoke"),
    ],
)
def test_one_line_for_a_config_that_is_not_there(root, tmp_path, monkeypatch, capsys, reference, message):
    with pytest.raises(SystemExit):
        in_process(root, monkeypatch, "launch/train.py", "--config", reference, "--workdir", tmp_path)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_evaluating_what_is_not_there(root, prepared, trained, tmp_path, monkeypatch, capsys):
    for more, message in {
        ("--workdir", str(tmp_path)): "no checkpoint there",
        ("--workdir", str(trained), "--evaluator", "clip"): "--evaluator: 'clip' is not one of clips",
        ("--workdir", str(trained), "--config.model.embedding_dim=64"): "of another model or optimiser",
        ("--workdir", str(trained), "--config.retrieval.clips.windows=3"): "prepared with windows = 2",
    }.items():
        with pytest.raises(SystemExit):
            in_process(root, monkeypatch, "launch/evaluate.py", *prepared, *more, "--name", "other")
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: ")
        assert message in said


def test_word2vec_of_another_size(root, tmp_path, monkeypatch, capsys):
    torch_files.save(tmp_path / "word2vec.pth", np.zeros((7, 300), np.float32))
    words = ["launch/train.py", "--config", "configs/milnce_howto100m.py:smoke", "--workdir", tmp_path / "run"]
    with pytest.raises(SystemExit):
        in_process(
            root, monkeypatch, *words, "--config.mesh.data=4", f"--config.text.word2vec={tmp_path / 'word2vec.pth'}"
        )
    assert "holds an array (7, 300), expected one tensor (100, 300)" in capsys.readouterr().err


def test_the_readme_s_python_runs(root, trained, monkeypatch, capsys):
    """Word for word, but for the run that it loads; and every file that its commands name is there."""
    text = (root / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(root)
    exec(compile(code.replace("runs/quickstart", str(trained)), "README.md", "exec"), {})
    assert re.match(r"a (bird|racing car|stream) .*\[", capsys.readouterr().out)
    commands = re.findall(r"(?:python|bash|--config) ((?:launch|tests|configs|data_prep)/[\w./]+)", text)
    assert len(commands) > 8
    for path in commands:
        assert "NAME" in path or (root / path).is_file(), path
