"""launch/score.py: metrics from predictions and annotations alone."""

import json
import runpy
import sys

import pytest


@pytest.fixture
def score(root, monkeypatch, capsys):
    def run(*words):
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", ["score", *map(str, words)])
        monkeypatch.syspath_prepend(str(root / "launch"))
        try:
            runpy.run_path("launch/score.py", run_name="__main__")
        except SystemExit as ended:
            if ended.code != 1:
                raise
        said = capsys.readouterr()
        return dict(line.split() for line in said.out.splitlines()), said.err

    return run


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def query(qid, *spans):
    return {"qid": qid, "video": "v", "query": "words", "duration": 100, "spans": spans}


@pytest.fixture
def truth(tmp_path):
    return write(
        tmp_path / "truth.jsonl", [query("a", [0, 10], [50, 60]), query("b", [0, 10]), query("c", [0, 8]), query("d")]
    )


def test_several_moments_ties_and_missing_predictions(tmp_path, truth, score):
    predictions = [
        {"qid": "a", "seconds": [[50, 60, 0.9]]},  # the second of two moments
        {"qid": "b", "seconds": [[0, 5, 0.9], [0, 9, 0.1]]},  # just 0.5, then 0.9
        {"qid": "other", "pred_relevant_windows": [[0, 1, 1.0]]},
    ]
    found, _ = score(
        "--predictions",
        write(tmp_path / "p.jsonl", predictions),
        "--annotations",
        truth,
        "--output",
        tmp_path / "m.json",
    )
    assert (found["R1@0.5"], found["R1@0.7"], found["R5@0.7"]) == ("66.67", "33.33", "66.67")
    assert found["mIoU"] == "50"
    counts = ("queries", "without_predictions", "without_moments", "unknown_predictions", "annotations_left_out")
    assert [found[name] for name in counts] == ["3", "1", "1", "1", "0"]
    assert json.loads((tmp_path / "m.json").read_text())["mIoU"] == pytest.approx(50)


def test_didemo_adds_its_own(tmp_path, score):
    truth = [
        {"annotation_id": 1, "description": "a", "video": "v", "times": [[0, 0]] * 3 + [[4, 4]], "num_segments": 6}
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    predictions = write(tmp_path / "p.jsonl", [{"qid": "1", "seconds": [[0, 5, 1.0]]}])
    found, _ = score("--predictions", predictions, "--annotations", tmp_path / "truth.json", "--format", "didemo")
    assert (found["didemo/Rank@1"], found["didemo/mIoU"], found["R1@0.7"]) == ("100", "100", "100")


def test_qvhighlights_adds_average_precision(tmp_path, score):
    truth = {"qid": 7, "query": "a", "duration": 150, "vid": "v", "relevant_windows": [[0, 10], [20, 30]]}
    (tmp_path / "truth.jsonl").write_text(json.dumps(truth))
    predictions = write(tmp_path / "p.jsonl", [{"qid": 7, "pred_relevant_windows": [[20, 30, 0.9], [0, 6, 0.8]]}])
    words = ["--predictions", predictions, "--annotations", tmp_path / "truth.jsonl", "--format", "qvhighlights"]
    found, _ = score(*words)
    assert (found["mAP@0.5"], found["mAP@0.75"], found["mAP"], found["R1@0.7"]) == ("100", "50", "65", "100")


def test_ego4d_s_result_file(tmp_path, score):
    asked = [{"clip_start_sec": 0, "clip_end_sec": 10}, {"clip_start_sec": 5, "clip_end_sec": 10}]
    clip = {"clip_uid": "c", "annotations": [{"annotation_uid": "u", "language_queries": asked}]}
    (tmp_path / "truth.json").write_text(json.dumps({"videos": [{"clips": [clip]}]}))
    result = {"clip_uid": "c", "annotation_uid": "u", "query_idx": 0, "predicted_times": [[0, 5], [0, 10]]}
    (tmp_path / "p.json").write_text(json.dumps({"results": [result]}))
    words = ["--predictions", tmp_path / "p.json", "--annotations", tmp_path / "truth.json", "--format", "ego4d"]
    found, _ = score(*words, "--thresholds", "0.5")
    assert (found["R1@0.5"], found["R5@0.5"], found["queries"], found["without_predictions"]) == ("0", "100", "1", "1")
    result["query_idx"] = 7
    (tmp_path / "p.json").write_text(json.dumps({"results": [result]}))
    assert "has no query 7 in the annotations" in score(*words)[1]
    (tmp_path / "p.json").write_text("[]")
    assert "expected the challenge's result file" in score(*words)[1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no predictions"),
        ([{"qid": "z", "seconds": []}], "no prediction is of a query of"),
        ([{"video": "v", "seconds": []}], "line 1: expected a JSON object with 'qid'"),
        ([{"qid": "a", "frames": [[1, 2, 3]]}], "line 1: only frames, no seconds"),
        ([{"qid": "a", "seconds": []}, {"qid": "a", "seconds": []}], "line 2: qid 'a' is there twice"),
        ([{"qid": "a", "seconds": [[1, None]]}], "line 1: expected 'seconds', a list of [start, end, score]"),
        ([{"qid": "a", "seconds": "late"}], "line 1: expected 'seconds'"),
        ([{"qid": "a", "seconds": [1, 2]}], "line 1: expected 'seconds'"),
    ],
)
def test_files_of_another_system_are_one_line(tmp_path, truth, score, lines, message):
    _, said = score("--predictions", write(tmp_path / "p.jsonl", lines), "--annotations", truth)
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
