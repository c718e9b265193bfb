"""The command that brings annotations to one form."""

import csv
import subprocess
import sys

from data_prep import annotations as command
from vlm_jax import annotations


def test_one_form_for_all_and_a_list_of_what_is_left_out(tmp_path, capsys):
    (tmp_path / "test.txt").write_text("A 0.0 6.9##a person leaves\nA 5 5##nothing\nA 5 6##\n")
    words = ["--source", tmp_path / "test.txt", "--format=charades", "--output", tmp_path / "made" / "test.jsonl"]
    command.main([str(word) for word in words])
    (query,) = annotations.read(tmp_path / "made" / "test.jsonl").queries
    assert (query.qid, query.query, query.spans) == ("1", "a person leaves", ((0.0, 6.9),))
    with open(tmp_path / "made" / "test.skipped.csv", newline="") as file:
        assert [(row["item"], row["reason"]) for row in csv.DictReader(file)] == [
            ("2", "zero length"),
            ("3", "empty query"),
        ]
    assert "1 sentences, 2 skipped" in capsys.readouterr().out


def test_a_mistake_is_one_line(root, tmp_path):
    words = ["--source", tmp_path / "absent", "--format", "tacos", "--output", tmp_path / "made.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.annotations", *map(str, words)], cwd=root, text=True, capture_output=True
    )
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path}/absent: No such file or directory\n")
