import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from vlm_jax.data import records
from vlm_jax.data.protocol import check_protocol, read_protocol
from vlm_jax.data.records import Record, Skip
from vlm_jax.errors import DataError

FEATURES = tfds.features.FeaturesDict({"number": np.int64, "text": tfds.features.Text(), "name": tfds.features.Text()})


def example(number):
    return {"number": number, "text": "é" * number, "name": f"item {number}"}


def write(directory, counts=(3, 2), split="train", name="made", skips=()):
    """Shards of `counts` records, every second one in a group of its own."""
    number = 0
    for shard, count in enumerate(counts):
        path = records.shard_path(directory, name, split, shard, len(counts))
        items = [Record(example(number + place), (place + 1) // 2, place + 0.5) for place in range(count)]
        records.write_shard(path, FEATURES, [*skips, *items])
        number += count


def finalize(directory, shards=2, split="train", name="made", **protocol):
    return records.finalize(directory, name, split, shards, FEATURES, protocol)


def one_line(caught, *parts):
    assert "\n" not in str(caught.value)
    for part in parts:
        assert str(part) in str(caught.value)


def test_the_index_leads_to_every_record(tmp_path):
    write(tmp_path, (4,))
    path = records.shard_path(tmp_path, "made", "train", 0, 1)
    index = records.read_index(path)
    assert index["group"].tolist() == [0, 1, 1, 2]
    assert index["weight"].tolist() == [0.5, 1.5, 2.5, 3.5]
    for number, row in enumerate(index):
        serialised = records.read_record(tf.constant(str(path)), tf.constant(row["offset"]))
        read = FEATURES.deserialize_example_np(serialised.numpy())
        assert (read["number"], read["text"].decode()) == (number, "é" * number)


def test_the_same_records_give_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder, skips=[Skip("video", "missing")])
        finalize(tmp_path / folder, fps=5)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "dataset_info.json",
        "features.json",
        "made-train.index-00000-of-00002.npy",
        "made-train.index-00001-of-00002.npy",
        "made-train.skipped-00000-of-00002.csv",
        "made-train.skipped-00001-of-00002.csv",
        "made-train.tfrecord-00000-of-00002",
        "made-train.tfrecord-00001-of-00002",
        "protocol.json",
        "skipped.csv",
    ]
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    def items():
        yield Record(example(1), 0)
        raise RuntimeError("stopped")

    path = records.shard_path(tmp_path, "made", "train", 0, 1)
    with pytest.raises(RuntimeError, match="stopped"):
        records.write_shard(path, FEATURES, items())
    assert list(tmp_path.iterdir()) == []


def test_skipped_items_keep_their_reasons(tmp_path):
    skips = [
        Skip('a,"b".mp4', "no captions", "x/ä.csv: no such file"),
        Skip("c.mp4", "too short"),
        Skip("d", "e", "\n"),
    ]
    write(tmp_path, (1, 1), skips=skips)
    assert records.read_skipped(records.shard_path(tmp_path, "made", "train", 1, 2)) == skips
    summary = finalize(tmp_path)
    assert summary["skipped"] == {"no captions": 2, "too short": 2, "e": 2}
    assert (tmp_path / "skipped.csv").read_text(encoding="utf-8").count('a,""b"".mp4') == 2


def test_the_list_of_a_folder_has_all_splits(tmp_path):
    write(tmp_path, (1,), skips=[Skip("a.mp4", "missing")])
    finalize(tmp_path, 1)
    write(tmp_path, (1, 1), split="test", skips=[Skip("b.mp4", "truncated", kept=True)])
    assert finalize(tmp_path, 2, split="test")["skipped"] == {}
    lines = (tmp_path / "skipped.csv").read_text(encoding="utf-8").splitlines()
    kept = "test,b.mp4,truncated,,yes"
    assert lines == ["split,item,reason,detail,kept", "train,a.mp4,missing,,no", kept, kept]


def test_a_skip_knows_when_its_files_change(tmp_path):
    path, sources = records.shard_path(tmp_path, "made", "train", 0, 1), {"videos": tmp_path / "films"}
    sources["videos"].mkdir()
    (sources["videos"] / "b.mp4").write_bytes(b"damaged")
    long = "videos/" + "n" * 300
    skips = [Skip("a", "missing", files=("videos/a.mkv", "videos/a.mp4")), Skip("b", "bad", files=("videos/b.mp4",))]
    records.write_shard(path, FEATURES, [*skips, Skip("c", "missing", files=(long,)), Skip("d", "short")], sources)
    assert [skip.files for skip in records.read_skipped(path)] == [*(skip.files for skip in skips), (long,), ()]
    assert not records.has_changed_files(path, sources)
    (sources["videos"] / "a.mp4").touch()
    assert records.has_changed_files(path, sources)
    (sources["videos"] / "a.mp4").unlink()
    assert not records.has_changed_files(path, sources)
    (sources["videos"] / "b.mp4").write_bytes(b"whole")
    assert records.has_changed_files(path, sources)


IMPOSSIBLE = [("weight", 1, np.nan), ("weight", 0, -1.0), ("weight", 2, np.inf), ("offset", 2, 0), ("offset", 0, -8)]


@pytest.mark.parametrize(("column", "row", "value"), [*IMPOSSIBLE, ("group", 0, -1), ("group", 2, 0)])
def test_an_index_that_cannot_be_is_one_line(tmp_path, column, row, value):
    write(tmp_path, (4,))
    path = records.shard_path(tmp_path, "made", "train", 0, 1)
    index = records.read_index(path).copy()
    index[column][row] = value
    np.save(records.index_path(path), index)
    with pytest.raises(DataError, match=f"damaged, it has an? {column}") as caught:
        records.read_index(path)
    one_line(caught, records.index_path(path))


SPLIT = {"shards": 2, "records": [4, 4], "groups": [3, 3], "bytes": 9}
ABSURD = [
    *[{key: value} for key in ("name", "protocol", "splits") for value in (None, 3, ["x"])],
    *[{"splits": {"train": value}} for value in (None, [], {}, {**SPLIT, "shards": "2"}, {**SPLIT, "shards": 3})],
    *[{"splits": {"train": {**SPLIT, key: [4, value]}}} for key in ("records", "groups") for value in ("4", -1, 0.5)],
    *[{"protocol": {key: value}} for key in ("feature_dim", "fps", "feature_stride", "kind") for value in (None, [1])],
    *[{"protocol": {key: value}} for key in ("text_dim", "feature_stride") for value in (-1, "x", {}, True)],
    *[{"protocol": {"fps": value}} for value in (float("nan"), float("inf"), 10**400)],
    *[{"protocol": {"classes": value}} for value in ("ab", [1])],
    *[{"protocol": {key: value}} for key in ("num_classes", "interval", "jitter") for value in (-1, 2.5, "81", None)],
    *[{"protocol": {"actions": value}} for value in (["walk"], {"walk": 12}, {"12": 12}, {"-1": "walk"})],
    *[{"protocol": {"num_classes": 0}}, {"protocol": {"start_second": True}}, {"protocol": {"labels": 21}}],
    {"protocol": {"video_features": []}},
]


@pytest.mark.parametrize("change", ABSURD)
def test_a_protocol_that_cannot_be_is_one_line(tmp_path, change):
    content = {"name": "made", "protocol": {"fps": 5}, "splits": {"train": SPLIT}}
    (tmp_path / "protocol.json").write_text(json.dumps(content))
    assert read_protocol(tmp_path) == content
    for text in (json.dumps(content | change), "[" * 100_000, "[]", "\x00"):
        (tmp_path / "protocol.json").write_text(text)
        with pytest.raises(DataError, match="damaged") as caught:
            read_protocol(tmp_path)
        one_line(caught, tmp_path / "protocol.json")
        assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_statement_that_is_not_there_is_one_line(tmp_path):
    (tmp_path / "protocol.json").write_text(json.dumps({"name": "made", "protocol": {}, "splits": {}}))
    with pytest.raises(DataError, match=r"has no key protocol[.]feature_dim") as caught:
        read_protocol(tmp_path)["protocol"]["feature_dim"]
    one_line(caught, tmp_path / "protocol.json")


def test_finalize_counts(tmp_path):
    write(tmp_path, (3, 0, 2))
    size = sum(path.stat().st_size for path in tmp_path.glob("*.tfrecord-*"))
    expected = {"records": 5, "groups": 4, "bytes": size, "skipped": {}, "remarked": {}}
    assert finalize(tmp_path, 3, fps=5) == expected
    protocol = read_protocol(tmp_path)
    assert (protocol["name"], protocol["protocol"]) == ("made", {"fps": 5})
    assert protocol["splits"] == {"train": {"shards": 3, "records": [3, 0, 2], "groups": [2, 0, 2], "bytes": size}}


def test_tfds_reads_both_splits(tmp_path):
    write(tmp_path, (3, 0, 2))
    finalize(tmp_path, 3, fps=5)
    write(tmp_path, (4,), split="test")
    finalize(tmp_path, 1, split="test", fps=5)
    builder = tfds.builder_from_directory(tmp_path)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 5, "test": 4}
    assert builder.info.splits["train"].shard_lengths == [3, 0, 2]
    assert set(builder.info.features) == {"number", "text", "name"}
    numbers = [int(item["number"]) for item in tfds.as_numpy(builder.as_dataset(split="train"))]
    assert sorted(numbers) == [0, 1, 2, 3, 4]


def test_finalize_names_what_is_missing(tmp_path):
    write(tmp_path, (1,) * 9)
    for shard in (0, 2, 3, 4, 8):
        records.index_path(records.shard_path(tmp_path, "made", "train", shard, 9)).unlink()
    with pytest.raises(DataError, match=r"5 of the 9 shards of made-train are not made yet: 0,2-4,8$") as caught:
        finalize(tmp_path, 9)
    one_line(caught, tmp_path)
    write(tmp_path, (1,) * 80)
    for shard in range(0, 80, 2):
        records.index_path(records.shard_path(tmp_path, "made", "train", shard, 80)).unlink()
    with pytest.raises(DataError, match=r"40 of the 80 .* not made yet: 0,2,4,.*,56,58 and 10 more stretches$"):
        finalize(tmp_path, 80)


def test_finalize_refuses_an_empty_split(tmp_path):
    write(tmp_path, (0,), skips=[Skip("a.mp4", "missing", "a.mp4: no such file")])
    with pytest.raises(DataError, match="holds no record") as caught:
        finalize(tmp_path, 1)
    one_line(caught, tmp_path, "'train'", "skipped.csv")
    assert "a.mp4,missing" in (tmp_path / "skipped.csv").read_text()


@pytest.mark.parametrize(
    ("name", "protocol", "message"), [("made", {"fps": 10}, "its fps is 5, expected 10"), ("o", {}, "name")]
)
def test_a_folder_holds_one_data_set(tmp_path, name, protocol, message):
    write(tmp_path)
    finalize(tmp_path, fps=5)
    write(tmp_path, split="test", name=name)
    before = (tmp_path / "protocol.json").read_bytes()
    with pytest.raises(DataError, match=message) as caught:
        finalize(tmp_path, split="test", name=name, **protocol)
    one_line(caught, tmp_path / "protocol.json")
    assert (tmp_path / "protocol.json").read_bytes() == before


def test_finalize_removes_what_killed_runs_left(tmp_path):
    write(tmp_path)
    (tmp_path / "made-train.tfrecord-00001-of-00002.0badcafe.tmp").write_text("half")
    (tmp_path / "made-test.tfrecord-00001-of-00002.0badcafe.tmp").write_text("another split's")
    finalize(tmp_path)
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["made-test.tfrecord-00001-of-00002.0badcafe.tmp"]


def damage_index(path, how):
    index = records.index_path(path)
    if how == "missing":
        index.unlink()
    elif how == "cut":
        index.write_bytes(index.read_bytes()[:-7])
    elif how == "empty":
        index.write_bytes(b"")
    else:
        np.save(index, np.arange(3))


@pytest.mark.parametrize(
    ("how", "message"),
    [("missing", "no such file"), ("cut", "damaged"), ("empty", "damaged"), ("other", "expected rows of")],
)
def test_an_index_that_cannot_be_read(tmp_path, how, message):
    write(tmp_path)
    path = records.shard_path(tmp_path, "made", "train", 0, 2)
    damage_index(path, how)
    with pytest.raises(DataError, match=message) as caught:
        records.read_index(path)
    one_line(caught, records.index_path(path))


def test_no_data_set_there(tmp_path):
    with pytest.raises(DataError, match=r"no protocol\.json there") as caught:
        read_protocol(tmp_path)
    one_line(caught, tmp_path)
    with pytest.raises(DataError, match=r"\(empty path\): no protocol\.json"):
        read_protocol("")
    (tmp_path / "protocol.json").write_text('{"name": ')
    with pytest.raises(DataError, match="damaged") as caught:
        read_protocol(tmp_path)
    one_line(caught, tmp_path / "protocol.json")


def test_check_protocol_names_the_key(tmp_path):
    found = {"fps": 5, "min_time": 5.0, "kind": "milnce_training"}
    check_protocol(tmp_path, found, {"fps": 5, "min_time": 5})
    with pytest.raises(DataError, match="fps = 5, the config asks for 10") as caught:
        check_protocol(tmp_path, found, {"min_time": 5.0, "fps": 10})
    one_line(caught, tmp_path)
    with pytest.raises(DataError, match="windows = None, the config asks for 4"):
        check_protocol(tmp_path, found, {"windows": 4})


def test_find_damage(tmp_path):
    write(tmp_path, (4,))
    path = records.shard_path(tmp_path, "made", "train", 0, 1)
    offsets = records.read_index(path)["offset"].tolist()
    places = [(str(path), offset) for offset in offsets]
    assert records.find_damage(places) is None
    missing = str(tmp_path / "other")
    assert records.find_damage([places[0], (missing, 0)]) == f"{missing}: no such file"
    content = bytearray(path.read_bytes())
    content[offsets[2] + 20] ^= 1
    path.write_bytes(content)
    assert records.find_damage(places[:2] + places[3:]) is None
    assert records.find_damage(places).startswith(f"{path}: no undamaged record at byte {offsets[2]};")
    path.write_bytes(content[: offsets[3] + 20])
    assert f"byte {offsets[3]}" in records.find_damage(places[3:])


def test_metadata_is_readable_json(tmp_path):
    records.write_json(tmp_path / "a.json", {"b": 1, "a": [0.1, "é"]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [0.1, "é"], "b": 1}
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")
