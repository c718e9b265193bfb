"""GroundNLQ's preparation: stores of features, annotations, what is left out, and what `--check` tells."""

import csv
import io
import json

import lmdb
import nlq_files
import numpy as np
import pytest

from data_prep.groundnlq import annotations
from data_prep.groundnlq import prepare as preparation
from data_prep.groundnlq.stores import TEXT_KEYS, VIDEO_KEYS, decode, open_store, words
from vlm_jax import config as configs
from vlm_jax.data.feature_store import CLIPS, FeatureStore, clip_features, read_records
from vlm_jax.data.protocol import read_protocol
from vlm_jax.data.record_examples import Split
from vlm_jax.errors import DataError
from vlm_jax.features import Settings, save, write_settings
from vlm_jax.interop import torch_files
from vlm_jax.systems.groundnlq import data
from vlm_jax.systems.groundnlq.config import default_config
from vlm_jax.systems.groundnlq.samples import SampleSpec

SPEC = SampleSpec(video_dim=nlq_files.WIDTH, text_dim=nlq_files.WORD, max_length=64, buckets=(64,))


def packed(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def run(*words):
    preparation.main([str(word) for word in words])


def skipped(folder):
    with open(folder / "skipped.csv", newline="", encoding="utf-8") as file:
        return {row["item"]: row["reason"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_records_hold_what_the_files_hold(tmp_path, dtype):
    nlq_files.prepare(nlq_files.write(tmp_path, clips=4), dtype)
    store = FeatureStore(str(tmp_path / "features"), {"feature_dim": nlq_files.WIDTH})
    queries = data.load_queries(str(tmp_path / "queries"), "train+validation", SPEC)
    assert [query.qid for query in queries] == [f"ann{n}_{index}" for n in (0, 1, 2) for index in (0, 2, 3)]
    store.load(query.clip for query in queries)
    for query in queries:
        video = torch_files.load(tmp_path / "video" / f"{query.clip}.pt")
        tokens = np.load(tmp_path / "text" / f"{query.qid}.npz")["token_features"]
        tolerance = 0 if dtype == "float32" else 0.02
        np.testing.assert_allclose(store[query.clip], video, rtol=tolerance)
        np.testing.assert_allclose(query.tokens.astype(np.float32), tokens, rtol=tolerance)
        assert query.duration == store.length(query.clip) * nlq_files.SECONDS
        # Files that say nothing: as long as their rows begin.
        assert store.duration(query.clip) == pytest.approx(query.duration)
        assert query.spans.shape == (1, 2)
    assert [len(query.spans) for query in data.load_queries(str(tmp_path / "queries"), "test", SPEC)] == [0] * 3


def test_values_of_the_reference_s_lmdb():
    rows = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert decode(packed(features=rows, allow_pickle=np.array(True)), VIDEO_KEYS).tolist() == rows.tolist()
    both = packed(features=rows, token_features=rows[:1])
    assert decode(both, TEXT_KEYS).shape == (1, 3)
    assert words(decode(packed(features=rows[0]), TEXT_KEYS)).shape == (1, 3)
    with pytest.raises(ValueError, match="holds other, expected token_features or features"):
        decode(packed(other=rows), TEXT_KEYS)
    with pytest.raises(ValueError, match="holds object, expected real numbers"):
        decode(packed(features=np.array([{"an": "object"}], object)), VIDEO_KEYS)
    for broken in (b"", b"no archive", packed(features=rows)[:60]):
        with pytest.raises(ValueError, match=r"not an [.]npz file"):
            decode(broken, VIDEO_KEYS)


def test_an_lmdb_a_folder_and_an_archive_give_the_same(tmp_path):
    arrays = {f"clip{n}": np.full((n + 1, 4), n, np.float32) for n in range(3)}
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    torch_files.save(tmp_path / "folder" / "clip0.pt", arrays["clip0"])
    np.save(tmp_path / "folder" / "clip1.npy", arrays["clip1"])
    np.savez(tmp_path / "folder" / "clip2.npz", features=arrays["clip2"])
    np.savez(tmp_path / "archive.npz", **arrays)
    environment = lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 20)
    with environment, environment.begin(write=True) as values:
        for name, array in arrays.items():
            values.put(name.encode(), packed(features=array))
    for path in (tmp_path / "folder", tmp_path / "archive.npz", tmp_path / "lmdb"):
        store = open_store(path, VIDEO_KEYS)
        assert list(store.names()) == list(arrays)
        assert all(np.array_equal(store.read(name), array) for name, array in arrays.items())
        assert store.read("nowhere") is store.read("n" * 600) is None
    with pytest.raises(ValueError, match="not to be read from the LMDB"):
        store.read("")
    with pytest.raises(DataError, match="nothing: no such file"):
        open_store(tmp_path / "nothing", VIDEO_KEYS)


def test_clips_that_cannot_be_used_are_listed(tmp_path, capsys):
    video = tmp_path / "video"
    video.mkdir()
    np.save(video / "good.npy", np.ones((3, 4), np.float32))
    np.save(video / "narrow.npy", np.ones((3, 5), np.float32))
    np.save(video / "flat.npy", np.ones(4, np.float32))
    np.save(video / "nan.npy", np.full((3, 4), np.nan, np.float32))
    np.save(video / "empty.npy", np.ones((0, 4), np.float32))
    (video / "damaged.pt").write_bytes(b"no tensor")
    (video / "cut.npy").write_bytes(b"")
    torch_files.save(video / "list.pt", [np.ones(3)])
    torch_files.save(video / "complex.pt", np.ones((3, 4), complex))
    torch_files.save(video / "number.pt", np.float32(1))
    np.save(video / "text.npy", np.array([["a"] * 4]))
    np.save(video / "single.npy", np.float32(1))
    (video / "bomb.npz").write_bytes(packed(features=np.zeros((5 << 20, 4), np.float32)))
    flipped = bytearray(packed(features=np.ones((3, 4))))
    flipped[len(flipped) // 3] ^= 255
    (video / "flipped.npz").write_bytes(flipped)
    run("features", "--features", video, "--dim", 4, "--output", tmp_path / "out", "--num_shards", 2)
    assert skipped(tmp_path / "out") == {
        "cut": "unreadable",
        "damaged": "unreadable",
        **dict.fromkeys(("complex", "number", "text", "single", "bomb", "flipped"), "unreadable"),
        "list": "unreadable",
        "narrow": "wrong shape",
        "flat": "wrong shape",
        "nan": "not finite",
        "empty": "no features",
    }
    assert "1 kept as 1 records" in capsys.readouterr().out
    np.save(video / "cut.npy", np.ones((3, 4), np.float32))
    run("features", "--features", video, "--dim", 4, "--output", tmp_path / "out", "--num_shards", 2)
    assert "2 kept as 2 records" in capsys.readouterr().out
    assert "cut" not in skipped(tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no features there"):
        run("features", "--features", tmp_path / "nothing", "--output", tmp_path / "other")


def question(qid="a_0", **changes):
    record = {"query": "where?", "query_id": qid, "duration": 10.0, "video_id": "clip", "query_type": "nlq"}
    return record | {"timestamps": [[1.0, 2.0]]} | changes


def test_questions_that_cannot_be_used_are_listed(tmp_path):
    records = [
        question(),
        question("narration_0", query_type="narration", timestamps=[3.0, 4.0]),
        question("script_0", query_type="nlq_narration"),
        question(),
        question("other_0", query_type="moments"),
        question("back_0", timestamps=[[5.0, 4.0]]),
        question("nan_0", timestamps=[[float("nan"), 4.0]]),
        question("one_0", timestamps=[[5.0]]),
        question("endless_0", duration=0),
        question("wordless_0"),
        question("empty_0"),
        question("n" * 300),
        question("short_0", timestamps=[[3.0, 3.0]]),
    ]
    del records[8]["video_id"]
    (tmp_path / "text").mkdir()
    for record in records:
        rows = 0 if record["query_id"] == "empty_0" else 2
        if record["query_id"] not in ("wordless_0", "n" * 300):
            np.save(tmp_path / "text" / f"{record['query_id']}.npy", np.ones((rows, 4), np.float32))
    (tmp_path / "q.jsonl").write_text(annotations.to_lines(records))
    source = ["--annotations", tmp_path / "q.jsonl", "--text", tmp_path / "text", "--dim", 4, "--split", "train"]
    run("queries", *source, "--output", tmp_path / "out", "--num_shards", 2)
    assert skipped(tmp_path / "out") == {
        "a_0": "duplicate name",
        "other_0": "unknown kind",
        "back_0": "not a moment",
        "nan_0": "not a moment",
        "one_0": "not a moment",
        "endless_0": "not an annotation",
        "wordless_0": "no features",
        "empty_0": "no features",
        "n" * 300: "no features",
    }
    spec = SampleSpec(text_dim=4)
    kept = data.load_queries(str(tmp_path / "out"), "train", spec)
    assert [query.qid for query in kept] == ["a_0", "narration_0", "script_0", "short_0"]
    assert kept[1].spans.tolist() == [[3.0, 4.0]]


def test_files_that_are_something_else_are_named(tmp_path):
    (tmp_path / "text").mkdir()
    bad = {"a.json": "{", "b.json": "[]", "c.json": '{"videos": [{}]}', "d.jsonl": '{"query": 1}\n[1]'}
    messages = {"a.json": "not JSON", "b.json": "not an annotation file", "c.json": "KeyError: 'clips'"}
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=messages.get(name, "line 2: not a JSON object")) as said:
            annotations.read_questions(tmp_path / name)
        assert name in str(said.value)
    (tmp_path / "egoclip.csv").write_text("video_uid,clip_text\nv,c\n")
    with pytest.raises(DataError, match="no column 'video_uid', parted by tabs"):
        annotations.read_egoclip(tmp_path / "egoclip.csv")


EGOCLIP = "video_uid\tnarration_source\tnarration_ind\tnarration_time\tclip_start\tclip_end\tclip_text\n"


def test_narrations_become_questions(tmp_path):
    rows = [
        "v\tnarration_pass_1\t0\t2\t1.5\t2.5\tC opens",
        "v\tnarration_pass_2\t1\t3\t2.0\t12.0\ttoo late: ends with the clip",
        "v\tnarration_pass_2\t2\t3\t4.0\t5.0\tC closes\tone field\ttoo many",
        "v\tnarration_pass_2\t3\t3\tsoon\t5.0\tno time",
        "v\tnarration_pass_2\t4\t6\t5.5\t6.5\tC closes",
        "w\tnarration_pass_1\t5\t6\t5.5\t6.5\tof another video",
    ]
    (tmp_path / "egoclip.csv").write_text(EGOCLIP + "\n".join(rows))
    clip = {"clip_uid": "c", "video_start_sec": 1.0, "video_end_sec": 12.0}
    gone = {"clip_uid": annotations.WITHOUT_FEATURES[0], "video_start_sec": 0.0, "video_end_sec": 20.0}
    videos = [{"video_uid": "v", "clips": [clip, gone]}, {"video_uid": "unknown", "clips": [dict(clip, clip_uid="d")]}]
    for name in ("nlq.json", "mq.json"):
        (tmp_path / name).write_text(json.dumps({"videos": videos}))
    (tmp_path / "text").mkdir()
    for name in ("c_narrator-1_0", "c_narrator-2_4"):
        np.save(tmp_path / "text" / f"{name}.npy", np.ones(4, np.float32))
    source = ["--egoclip", tmp_path / "egoclip.csv", "--annotations", tmp_path / "nlq.json", tmp_path / "mq.json"]
    source += ["--text", tmp_path / "text", "--dim", 4, "--jsonl", tmp_path / "out.jsonl"]
    run("narrations", *source, "--output", tmp_path / "out", "--num_shards", 1)
    first, second = data.load_queries(str(tmp_path / "out"), "train", SampleSpec(text_dim=4))
    assert (first.qid, first.text, first.spans.tolist(), first.duration) == (
        "c_narrator-1_0",
        "C opens",
        [[0.5, 1.5]],
        11,
    )
    assert second.spans.tolist() == [[4.5, 5.5]]
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [entry["query_type"] for entry in written] == ["nlq_narration"] * 2
    (tmp_path / "egoclip.csv").write_text(EGOCLIP + rows[0].replace("pass_1", "pass_3"))
    with pytest.raises(DataError, match="line 2: narration_source is 'narration_pass_3'"):
        annotations.read_egoclip(tmp_path / "egoclip.csv")


def test_own_annotations_and_own_features(tmp_path):
    settings = Settings("mixed_5c", 16, 8, 4.0, 112, "center", "float32", 4, "0123456789abcdef01", "runs/x")
    write_settings(tmp_path / "own", settings)
    save(tmp_path / "own", "films/mine", np.ones((5, 4), np.float32), 10.0)
    run("features", "--features", tmp_path / "own", "--output", tmp_path / "features", "--num_shards", 1)
    protocol = read_protocol(tmp_path / "features")["protocol"]
    assert {key: protocol[key] for key in ("feature_dim", "feature_stride", "fps")} == {
        "feature_dim": 4,
        "feature_stride": 8.0,
        "fps": 4.0,
    }
    assert protocol["video_source"] == settings.source
    config = default_config()
    config.data.features = str(tmp_path / "features")
    configs.describe(config)
    assert (config.model.video_dim, config.data.feature_stride, config.data.fps) == (4, 8.0, 4.0)
    assert Settings(**config.data.video_features) == settings
    (record,) = read_records(Split(str(tmp_path / "features"), CLIPS), clip_features())
    assert (record["clip"], record["duration"]) == (b"films/mine", 10.0)
    store = FeatureStore(str(tmp_path / "features"), {})
    store.load(["films/mine"])
    assert store.duration("films/mine") == 10.0
    line = {"qid": "q", "video": "films/mine", "query": "a door", "duration": 10, "spans": [[1, 2], [4, 5]]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line))
    np.savez(tmp_path / "words.npz", q=np.ones((3, 4), np.float32))
    source = ["--annotations", tmp_path / "mine.jsonl", "--format", "jsonl", "--text", tmp_path / "words.npz"]
    run("queries", *source, "--dim", 4, "--split", "train", "--output", tmp_path / "queries", "--num_shards", 1)
    (query,) = data.load_queries(str(tmp_path / "queries"), "train", SampleSpec(text_dim=4))
    assert query.spans.tolist() == [[1.0, 2.0], [4.0, 5.0]]
    assert list(skipped(tmp_path / "queries").values()) == ["duplicate id"]


def test_check_tells_in_words(tmp_path, capsys):
    (tmp_path / "video").mkdir()
    (tmp_path / "text").mkdir()
    sizes = {"clip": 40, "long": 2561, "short": 2}
    for name, size in sizes.items():
        np.save(tmp_path / "video" / f"{name}.npy", np.ones((size, 2), np.float16))
    records = [
        question("fine_0"),
        question("zero_0", timestamps=[[3.0, 3.0]]),
        question("beyond_0", timestamps=[[11.0, 12.0]]),
        question("late_0", timestamps=[[9.0, 12.0]]),
        question("lost_0", video_id="nowhere"),
        question("short_0", video_id="short"),
    ]
    for record in records:
        np.save(tmp_path / "text" / f"{record['query_id']}.npy", np.ones((1, 2), np.float32))
    (tmp_path / "q.jsonl").write_text(annotations.to_lines(records))
    run("features", "--features", tmp_path / "video", "--dim", 2, "--output", tmp_path / "features", "--num_shards", 1)
    source = ["--annotations", tmp_path / "q.jsonl", "--text", tmp_path / "text", "--dim", 2, "--split", "train"]
    run("queries", *source, "--output", tmp_path / "queries", "--num_shards", 1)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("--check", tmp_path / "features")
    told = capsys.readouterr().out
    assert "3 records checked, 1 problem" in told
    assert "1 clip is longer than the published models take" in told
    assert "clip long: 2561 positions" in told
    with pytest.raises(SystemExit):
        run("--check", tmp_path / "queries", "--features", tmp_path / "features")
    told = capsys.readouterr().out
    for words_ in (
        "6 records checked, 5 problems",
        "1 question is answered by a moment of no length",
        "question zero_0: 3.00 to 3.00 s of 10.00 s",
        "1 question is answered beyond its clip's end",
        "1 moment outlasts its clip",
        "1 question is about a clip without features",
        "question lost_0: clip nowhere",
        "clip short: 1.1 s of 10.0 s",
    ):
        assert words_ in told
    good = nlq_files.prepare(nlq_files.write(tmp_path / "good", clips=4))
    run("--check", good / "queries", "--features", good / "features")
    assert ", no problems" in capsys.readouterr().out


def test_check_tells_of_raw_data(tmp_path, capsys):
    folder = nlq_files.write(tmp_path, clips=4)
    words = ["--dim", nlq_files.WIDTH, "--feature_stride", nlq_files.STRIDE, "--fps", nlq_files.FPS]
    asked = ["--annotations", folder / "nlq_train.json", "--text", folder / "text", "--text_dim", nlq_files.WORD]
    run("--check", folder / "video", *words, *asked)
    assert "4 clips, 6 questions checked, no problems" in capsys.readouterr().out
    np.savez(folder / "packed.npz", **{name: torch_files.load(folder / "video" / f"{name}.pt") for name in ("clip0",)})
    (folder / "video" / "clip0.pt").write_bytes(b"no tensor")
    np.save(folder / "video" / "narrow.npy", np.ones((3, 4), np.float32))
    np.save(folder / "video" / "endless.npy", np.ones((2561, nlq_files.WIDTH), np.float32))
    (folder / "text" / "ann1_0.npz").unlink()
    content = json.loads((folder / "nlq_train.json").read_text())
    content["videos"][1]["clips"][0]["annotations"][0]["language_queries"][2]["clip_end_sec"] = -5.0
    (folder / "nlq_train.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        run("--check", folder / "video", *words, *asked)
    told = capsys.readouterr().out
    for line in (
        "6 clips, 6 questions checked, 8 problems",
        "1 item has features that cannot be read",
        "1 item has features of another width",
        "1 clip is longer than the published models take",
        "3 questions are about clips without features",
        "1 question has no features of words",
        "1 question cannot be used",
    ):
        assert line in told
    with pytest.raises(SystemExit):
        run("--check", folder / "packed.npz", *words, *asked)
    assert "1 clip, 6 questions checked" in capsys.readouterr().out
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"no protocol[.]json and no features"):
        run("--check", tmp_path / "nothing")
    with pytest.raises(DataError, match="no such folder"):
        run("--check", tmp_path / "absent")


def test_check_finds_what_preparation_would_have_left_out(tmp_path, capsys):
    """Records that another program wrote: names twice, no words, another width, no finite numbers."""
    from data_prep.groundnlq.check import check_clip, check_query
    from vlm_jax.data.records import Record, finalize, shard_path, write_shard

    rows = {"clip": "a", "features": np.full((3, 2), np.nan, np.float32)}
    assert [problem.reason for problem in check_clip({**rows, "clip": b"a"}, {"feature_dim": 2}, 1)] == ["not finite"]
    assert [problem.reason for problem in check_clip({**rows, "clip": b"a"}, {"feature_dim": 3}, 1)] == ["width"]
    empty = {"qid": b"q", "duration": 9.0, "spans": np.zeros((0, 2)), "tokens": np.zeros((0, 4))}
    assert [problem.reason for problem in check_query(empty, {"text_dim": 4}, 1)] == ["no tokens"]
    path = shard_path(tmp_path, "features", CLIPS, 0, 1)
    good = {"clip": "a", "features": np.ones((3, 2), np.float32), "duration": np.float64(0)}
    write_shard(path, clip_features(), [Record(good, 0), Record(good, 1)])
    protocol = {"kind": "clip_features", "feature_dim": 2, "dtype": "float32", "feature_stride": 16.0, "fps": 30.0}
    finalize(tmp_path, "features", CLIPS, 1, clip_features(), protocol)
    with pytest.raises(SystemExit):
        run("--check", tmp_path)
    assert "1 name is there twice" in capsys.readouterr().out
