"""The command that merges result files."""

import json
import subprocess
import sys

import pytest


def result(path, challenge="ego4d_nlq_challenge", count=3, times=((1.0, 2.0, 0.9), (5.0, 7.0, 0.4)), shift=0.0):
    moments = [[start + shift, end + shift, *rest] for start, end, *rest in times]
    entries = [
        {"query_idx": n, "annotation_uid": "a", "predicted_times": moments, "clip_uid": "c"} for n in range(count)
    ]
    path.write_text(json.dumps({"version": "1.0", "challenge": challenge, "results": entries}))
    return path


def run(root, *words):
    words = [sys.executable, "launch/ensemble.py", *map(str, words)]
    return subprocess.run(words, cwd=root, text=True, capture_output=True)


def test_files_become_one(root, tmp_path):
    files = [result(tmp_path / f"{number}.json", shift=number / 10) for number in range(3)]
    done = run(root, *files, "--output", tmp_path / "out" / "merged.json")
    assert done.returncode == 0, done.stderr
    assert "3 questions of 3 files" in done.stdout
    merged = json.loads((tmp_path / "out" / "merged.json").read_text())
    assert merged["challenge"] == "ego4d_nlq_challenge"
    assert [[len(pair) for pair in entry["predicted_times"]] for entry in merged["results"]] == [[2] * 5] * 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"challenge": "ego4d_mq_challenge"}, "b.json: challenge is 'ego4d_mq_challenge', expected a result file of"),
        ({"count": 2}, "file 1 has 3 results and file 2 has 2"),
        ({"times": ((1.0, 2.0),)}, "b.json: result 0 has times without scores; is it an ensemble already?"),
        ({"times": ()}, "file 2 has no predictions for query 0 of annotation a, clip c"),
    ],
)
def test_what_does_not_belong_together_is_refused(root, tmp_path, other, message):
    done = run(
        root, result(tmp_path / "a.json"), result(tmp_path / "b.json", **other), "--output", tmp_path / "out.json"
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.json").exists()
