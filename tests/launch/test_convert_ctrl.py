"""Paddle's checkpoint of CTRL to ours and back, by the command."""

import os
import pickle
import subprocess
import sys

import numpy as np

from vlm_jax import config as configs
from vlm_jax.interop import paddle_files
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import restore_variables

SHAPES = {
    "v2s_lt_weights": (24, 16),
    "s2s_lt_weights": (10, 16),
    "mid_out_weights": (12, 64, 1, 1),
    "sim_mat_weights": (3, 12, 1, 1),
}


def command(root, *words):
    done = subprocess.run(
        [sys.executable, "launch/convert_checkpoint.py", "--system", "ctrl", *map(str, words)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
        capture_output=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_there_and_back(root, tmp_path):
    rng = np.random.default_rng(0)
    source = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    paddle_files.save(tmp_path / "TALL.pdparams", source)
    code, said, failed = command(root, "--source", tmp_path / "TALL.pdparams", "--output", tmp_path / "ours")
    assert code == 0, failed
    assert "4 arrays, 1,348 numbers" in said
    config = configs.find(tmp_path / "ours")
    assert (config.model.visual_dim, config.model.hidden_dim, config.model.use_bias) == (24, 12, False)
    variables = restore_variables(tmp_path / "ours", get_task(config).abstract_variables())
    np.testing.assert_array_equal(variables["params"]["hidden"]["kernel"], source["mid_out_weights"][:, :, 0, 0].T)
    code, said, failed = command(root, "--reverse", "--source", tmp_path / "ours", "--output", tmp_path / "b.pdparams")
    assert code == 0, failed
    back = paddle_files.load(tmp_path / "b.pdparams")
    assert back.keys() == source.keys()
    assert all(np.array_equal(back[name], array) for name, array in source.items())
    content = pickle.loads((tmp_path / "b.pdparams").read_bytes())
    assert type(content) is dict
    assert {name: type(array) for name, array in content.items()} == dict.fromkeys(SHAPES, np.ndarray)
    code, _, failed = command(root, "--reverse", "--source", tmp_path / "ours", "--output", tmp_path / "b.pth")
    assert code == 1
    assert failed == f"error: {tmp_path}/b.pth: files of ctrl end in .pdparams, found .pth\n"


def test_a_file_that_is_none_is_one_line(root, tmp_path):
    (tmp_path / "TALL.pdparams").write_bytes(b"nothing")
    code, _, failed = command(root, "--source", tmp_path / "TALL.pdparams", "--output", tmp_path / "ours")
    assert code == 1
    assert failed.startswith(f"error: {tmp_path}/TALL.pdparams: damaged, truncated or not a .pdparams file")
    assert failed.count("\n") == 1
