"""Checker of the golden case of groundnlq's data: annotations, narrations, values of an LMDB, items, jittering."""

import json
import tempfile
from pathlib import Path

import numpy as np
from check_groundnlq_ops import assert_close

from data_prep.groundnlq import annotations
from data_prep.groundnlq.stores import TEXT_KEYS, VIDEO_KEYS, decode, words
from vlm_jax.systems.groundnlq.samples import SampleSpec, jittered, positions


def check_data(case, precision):
    names = {"train": "nlq_train.json", "val": "nlq_val.json", "test": "nlq_test_unannotated.json"}
    for split, name in names.items():
        made = annotations.to_lines(annotations.questions(case.manifest["reformat"]["inputs"][name]))
        assert made == case.manifest["reformat"]["outputs"][split]
    check_narrations(case.manifest["narrations"])
    out = case.tolerance["out"]
    spec = SampleSpec(feature_stride=case.config["feat_stride"], fps=case.config["fps"])
    items = annotations.items({**record, "query_id": n} for n, record in enumerate(case.manifest["records"]))
    for number, (record, item) in enumerate(zip(case.manifest["records"], items, strict=True)):
        assert "fault" not in item
        reference = case.group(f"out/item{number}/")
        video = decode(case[f"in/lmdb_video/{record['video_id']}"].tobytes(), VIDEO_KEYS)
        text = words(decode(case[f"in/lmdb_text/{record['query_id']}"].tobytes(), TEXT_KEYS))
        np.testing.assert_array_equal(video.astype(np.float32).T, reference["feats"])
        np.testing.assert_array_equal(text.astype(np.float32).T, reference["query_feats"])
        if "segments" in reference:
            assert_close(positions(np.array(item["spans"]), spec), reference["segments"], out, f"item {number}")
        else:
            assert item["spans"] == []
    drawn = case.group("in/jitter")
    assert drawn
    for name, draws in drawn.items():
        item = int(name.split("/")[0].split("_")[1])
        ours = positions(jittered(np.array(items[item]["spans"]), draws), spec)
        assert_close(ours, case[f"out/jitter{name.split('/')[0]}/segments"], out, name)


def check_narrations(wanted):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "egoclip.csv"
        path.write_text(wanted["egoclip_csv"])
        by_video = annotations.read_egoclip(path)
    made = annotations.to_lines(annotations.narrations(by_video, wanted["annotation_files"].values()))
    assert made == wanted["output_jsonl"].rstrip("\n")
    assert json.loads(made.splitlines()[0])["query_type"] in annotations.QUERY_KINDS


CHECKERS = {"data": check_data}
