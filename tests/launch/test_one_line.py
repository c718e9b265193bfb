"""What a person can get wrong before anything runs: one line, also where optional packages or backends are missing."""

import os
import subprocess
import sys

import pytest

HIDING = """
import sys


class Hiding:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Hiding())
"""


@pytest.mark.parametrize(
    ("hidden", "words", "message"),
    [
        (
            ("tensorflow", "tensorflow_datasets"),
            ["launch/train.py", "--config", "configs/ctrl_tacos.py", "--workdir", "{run}"],
            "this needs the package tensorflow_datasets: pip install 'vlm_jax[data]'",
        ),
        (
            ("tensorflow", "tensorflow_datasets"),
            ["-m", "data_prep.ctrl", "demo", "--sentences", "a", "--features", "b", "--output", "{run}"],
            "this needs the package tensorflow_datasets: pip install 'vlm_jax[data]'",
        ),
        (
            ("av",),
            ["launch/extract_features.py", "--checkpoint", "a", "--videos", "b", "--output", "{run}"],
            "reading video needs PyAV: pip install 'vlm_jax[video]'",
        ),
        (
            (),
            ["launch/train.py", "--config", "configs/ctrl_tacos.py:smoke", "--workdir", "{run}"],
            "jax cannot use 'cuda' on this machine",
        ),
    ],
)
def test_what_is_not_installed_is_one_line(root, tmp_path, hidden, words, message):
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(hidden=hidden))
    platform = {"JAX_PLATFORMS": "cpu" if hidden else "cuda", "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    words = [word.format(run=tmp_path / "run") for word in words]
    done = subprocess.run(
        [sys.executable, *words], cwd=root, env={**os.environ, **platform}, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
