"""Configs: loading, overriding, mistakes."""

import json
import runpy

import pytest

from vlm_jax import config as configs
from vlm_jax.errors import ConfigError

HOWTO = "configs/milnce_howto100m.py"


@pytest.mark.parametrize(
    ("variant", "epochs", "batch", "groups", "frames", "size"),
    [("", 300, 1024, 16, 16, 224), (":short", 150, 512, 8, 16, 224), (":paper", 300, 1024, 1, 32, 200)],
)
def test_published_recipes(root, monkeypatch, variant, epochs, batch, groups, frames, size):
    monkeypatch.chdir(root)
    config = configs.load(HOWTO + variant)
    assert (config.epochs, config.batch_size, config.batch_groups) == (epochs, batch, groups)
    assert (config.clips.num_frames, config.clips.size, config.clips.num_candidates) == (frames, size, 4)
    assert (config.optimizer.name, config.schedule.learning_rate, config.schedule.warmup_steps) == ("adam", 1e-3, 10000)
    assert config.clips.num_frames / config.clips.fps == 3.2


def test_overrides(root, monkeypatch):
    monkeypatch.chdir(root)
    words = ["--config.batch_size=64", "--config.schedule.learning_rate=1", "--config.data.synthetic=true"]
    words += ["--config.text.vocabulary=5.npy", "--config.evaluate.names=('youcook2',)"]
    config = configs.load(HOWTO, words)
    assert (config.batch_size, config.schedule.learning_rate, config.data.synthetic) == (64, 1.0, True)
    assert config.text.vocabulary == "5.npy"
    assert list(config.evaluate.names) == ["youcook2"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.bath_size=1", "no key 'bath_size'; did you mean 'batch_size'"),
        ("--config.data.strems=1", "no key 'strems'; did you mean 'streams'"),
        ("--config.dta.streams=1", "no key 'dta'; did you mean 'data'"),
        ("--config.batch_size=1.5", "expected int, found '1.5'"),
        ("--config.batch_size.x=1", "no key 'x'"),
        ("--config.data=1", "names a section"),
        ("--config.batch_size", "expected --config.key=value"),
        ("--config.batch_size=0", "config.batch_size: expected at least 1, found 0"),
        ("--config.batch_groups=3", "3 does not divide config.batch_size = 1024"),
        ("--config.data.streams=3", "config.data.streams: 3 does not divide"),
        ("--config.steps=5", "give either steps or epochs"),
        ("--config.task=milne", "config.task: 'milne' is not one of ctrl, groundnlq, lfb, milnce"),
    ],
)
def test_mistakes_are_named(root, monkeypatch, word, message):
    monkeypatch.chdir(root)
    with pytest.raises(ConfigError) as said:
        configs.load(HOWTO, [word])
    assert message in str(said.value)
    assert "\n" not in str(said.value)


def test_what_is_written_is_read(root, monkeypatch, tmp_path):
    monkeypatch.chdir(root)
    config = configs.load(HOWTO)
    configs.write(config, tmp_path / "config.json")
    assert configs.read(tmp_path / "config.json").to_dict() == json.loads(json.dumps(config.to_dict()))
    assert configs.find(tmp_path / "checkpoints" / "00000003").batch_size == 1024
    with pytest.raises(ConfigError, match=r"no config\.json in its folder or above"):
        configs.find(tmp_path / "a" / "b" / "c" / "d" / "e")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not a JSON config"):
        configs.read(tmp_path / "config.json")


def test_a_run_carries_its_word_list(tmp_path):
    """It is used where the run is moved and the list is gone; another list under the same name is noticed."""
    words, run = tmp_path / "words.npy", tmp_path / "run"
    words.write_bytes(b"words")
    config = configs.load("configs/milnce_howto100m.py:smoke", [f"--config.text.vocabulary={words}"])
    run.mkdir()
    configs.write(config, run / "config.json")
    configs.carry_files(config, run)
    configs.check_carried_files(config, run)
    assert configs.changes(config, configs.read(run / "config.json")) == ([], [])
    words.write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"config.text.vocabulary: .*words.npy has other content than .*run/text"):
        configs.check_carried_files(config, run)
    words.unlink()
    moved = run.rename(tmp_path / "moved")
    own = str(moved / "text.vocabulary.npy")
    assert configs.find(moved / "checkpoints" / "00000003").text.vocabulary == own
    configs.use_carried_files(config, moved, where_missing=True)
    assert config.text.vocabulary == own


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=-3", "config.steps: expected at least 0, found -3"),
        ("seed=-1", "config.seed: expected at least 0, found -1"),
        ("log_every=0", "config.log_every: expected at least 1, found 0"),
        ("checkpoint.keep=-3", "config.checkpoint.keep: expected at least 1, found -3"),
        ("checkpoint.every_steps=-1", "config.checkpoint.every_steps: expected at least 0, found -1"),
        ("evaluate.batch_size=0", "config.evaluate.batch_size: expected at least 1, found 0"),
        ("data.streams=0", "config.data.streams: expected at least 1, found 0"),
        ("mesh.model=-4", "config.mesh.model: expected at least 1, or -1 for all devices that are left, found -4"),
        ("optimizer.ema_decay=2", "config.optimizer.ema_decay: expected a number from 0 to less than 1, found 2.0"),
        ("optimizer.weight_decay=-0.1", "config.optimizer.weight_decay: expected a finite number of at least 0"),
        ("optimizer.groups=[['a', 1.0]]", r"config.optimizer.groups: expected a list of \[expression, rate factor"),
        ("optimizer.groups=[['(', 1.0, 0.0]]", r"config.optimizer.groups: expected a list of \[expression"),
        ("schedule.learning_rate=-1", "config.schedule.learning_rate: expected a finite rate of at least 0, found -1"),
        ("schedule.learning_rate=1e999", "config.schedule.learning_rate: expected a finite rate .*, found inf"),
        (
            "schedule.reference_batch_size=-8",
            "config.schedule.reference_batch_size: expected a batch size, .*, found -8",
        ),
        ("schedule.warmup_start=-1", "config.schedule.warmup_start: expected a number from 0 to 1, found -1.0"),
        ("matmul_precision=hi", "config.matmul_precision: expected one of default, high, .*, found 'hi'"),
        ("model.dtype=flot32", "config.model.dtype: expected one of float16, .*, found 'flot32'"),
        ("model.width=-1", "config.model.width: expected at least 0, found -1"),
        ("clips.num_frames=-8", "config.clips.num_frames: expected at least 0, found -8"),
    ],
)
def test_values_that_cannot_be_are_one_line(root, monkeypatch, override, message):
    monkeypatch.chdir(root)
    with pytest.raises(ConfigError, match=message):
        configs.load(f"{HOWTO}:smoke", [f"--config.{override}"])


def test_every_published_config_keeps_the_rules(root, monkeypatch):
    monkeypatch.chdir(root)
    for path in sorted(root.glob("configs/*.py")):
        for variant in ("", *runpy.run_path(str(path))["VARIANTS"]):
            configs.load(f"{path}:{variant}" if variant else str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(", "cannot be loaded: SyntaxError"),
        (
            "import nothing_of_that_name",
            "cannot be loaded: ModuleNotFoundError: No module named 'nothing_of_that_name'",
        ),
        ("a = 1", r"has no function get_config\(variant\)"),
    ],
)
def test_a_config_file_that_cannot_be_loaded_is_one_line(tmp_path, content, message):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        configs.load(str(tmp_path / "mine.py"))
    assert "\n" not in str(error.value)
