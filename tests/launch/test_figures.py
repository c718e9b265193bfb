import json
import subprocess
import sys

import matplotlib.image
import numpy as np


def figures(root, *arguments):
    command = [sys.executable, "launch/figures.py", *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_means_over_seeds(root, tmp_path):
    for name, values in {"K=4": (0.2, 0.3, 0.4), "K=1": (0.1, 0.1, 0.1)}.items():
        for seed, value in enumerate(values):
            folder = tmp_path / f"{name}-{seed}" / "results"
            folder.mkdir(parents=True)
            (folder / "held.json").write_text(json.dumps({"metrics": {"R@1": value}}))
    done = figures(root, "seeds", "--workdirs", *tmp_path.iterdir(), "--evaluators", "held", "--metrics", "R@1")
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in done.stdout.splitlines()]
    assert rows[0] == ["run", "evaluated on", "seeds", "R@1"]
    assert rows[2:] == [
        ["K=1", "held", "3", "0.100 ± 0.000 (0.100 to 0.100)"],
        ["K=4", "held", "3", "0.300 ± 0.100 (0.200 to 0.400)"],
    ]


def test_a_table_names_what_was_counted(root, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "val.json").write_text(json.dumps({"metrics": {"mAP": 97.1, "keyframes": 9.0}}))
    done = figures(root, "table", f"{tmp_path}:val=films", "--metrics", "mAP")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["keyframes", "mAP"],
        ["films", "9", "trained", "97.100"],
    ]


def test_a_table_of_videos_and_of_answers_has_their_chance(root, tmp_path):
    (tmp_path / "results").mkdir()
    found = {"l2_simi_t2v-mr": 4.5, "chance/l2_simi_t2v-mr": 11.0, "texts": 21.0, "videos": 20.0}
    for name, metrics in {"films": found, "asked": {"accuracy": 0.5, "chance/accuracy": 0.2, "questions": 9}}.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps({"metrics": metrics}))
    for name, metric, rows in (
        ("films", "l2_simi_t2v-mr", [["21", "trained", "4.5"], ["chance", "11.0"]]),
        ("asked", "accuracy", [["9", "trained", "0.500"], ["chance", "0.200"]]),
    ):
        done = figures(root, "table", f"{tmp_path}:{name}", "--metrics", metric)
        assert [line.split() for line in done.stdout.splitlines()][1:] == [[name, *rows[0]], rows[1]]


def test_metrics_of_runs_side_by_side(root, tmp_path):
    for name, metrics in {"a": {"mAP": 97.1, "AP/1 bend": 5.0}, "b": {"mAP": 9, "AP/3 run": None}}.items():
        (tmp_path / name / "results").mkdir(parents=True)
        (tmp_path / name / "results" / "val.json").write_text(json.dumps({"metrics": metrics}))
    sets = [f"{tmp_path / 'a'}:val=first", f"{tmp_path / 'b'}:val=second"]
    done = figures(root, "compare", *sets, "--prefix", "AP/")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["first", "second"],
        ["AP/1", "bend", "5.000", "-"],
        ["AP/3", "run", "-", "-"],
    ]
    assert "no metric begins with 'R@'" in figures(root, "compare", *sets, "--prefix", "R@").stderr


def test_a_run_without_results_is_one_line(root, tmp_path):
    done = figures(root, "seeds", "--workdirs", tmp_path / "a-1", "--evaluators", "held", "--metrics", "R@1")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("a-1/results/held.json: no such file; run launch/evaluate.py first")
    assert len(done.stderr.splitlines()) == 1


def test_a_timeline_of_a_real_clip(root, tmp_path):
    """With truth and without it; an ending of the name, or none."""
    clip = next(path for path in sorted((root / "data_prep" / "clips").iterdir()) if path.suffix == ".mp4")
    lines = [
        {"video": clip.stem, "query": "someone", "seconds": [[0.5, 2.0, 0.9], [3.0, 4.0, 0.2]], "truth": [[0.4, 2.0]]},
        {"video": clip.name, "query": "nobody", "seconds": []},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["timeline", "--predictions", tmp_path / "p.jsonl", "--videos", clip.parent, "--output", tmp_path / "a.png"]
    done = figures(root, *words)
    assert done.stdout.strip() == f"{tmp_path / 'a.png'}: 2 of 2 sentences", done.stderr
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert picture.shape[1] == 2100
    green = np.abs(picture[..., :3] - np.array([26, 127, 55]) / 255).max(-1) < 0.02
    bars = green.sum(1) > 60  # rows of a bar; a frame may have such pixels, too
    assert bars.sum() > 5, "the truth"
    assert not bars[picture.shape[0] // 2 :].any(), "no truth is known of the second sentence"


def test_a_timeline_needs_seconds_and_videos(root, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"video": "absent", "query": "x", "frames": [[1, 2, 0.5]]}))
    words = ["timeline", "--predictions", tmp_path / "p.jsonl", "--videos", tmp_path, "--output", tmp_path / "a.png"]
    assert "p.jsonl: no sentences with moments in seconds" in figures(root, *words).stderr
    (tmp_path / "p.jsonl").write_text(json.dumps({"video": "absent", "query": "x", "seconds": [[1, 2, 0.5]]}))
    assert f"{tmp_path}: no video absent" in figures(root, *words).stderr
