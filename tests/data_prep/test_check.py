import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data_prep import check
from data_prep.check import Found, Problem, Reason
from vlm_jax.data import records
from vlm_jax.data.records import Record
from vlm_jax.errors import DataError

REASONS = check.PREPARED | {"odd": Reason("number is odd", "numbers are odd", "add one")}
FEATURES = tfds.features.FeaturesDict({"number": np.int64})


def odd(record, protocol, weight):
    """Odd numbers, and the words that a kind of data would find."""
    if record["number"] == 13:
        raise DataError("an unlucky number")
    if record["number"] % 2:
        yield Problem("odd", f"{record['number']} of {protocol['kind']}, weight {weight:g}")


def make(directory, *shards):
    for number, values in enumerate(shards):
        path = records.shard_path(directory, "numbers", "train", number, len(shards))
        records.write_shard(path, FEATURES, [Record({"number": n}, group, 2.0) for group, n in enumerate(values)])
    records.finalize(directory, "numbers", "train", len(shards), FEATURES, {"kind": "numbers"})
    return [records.shard_path(directory, "numbers", "train", number, len(shards)) for number in range(len(shards))]


def run(directory, capsys, workers=1):
    well = check.report("NAME", check.check_prepared(directory, odd, workers), REASONS)
    return well, capsys.readouterr().out.splitlines()


def test_all_is_well(tmp_path, capsys):
    make(tmp_path, [2, 4], [6])
    assert run(tmp_path, capsys) == (True, ["NAME: 1 split, 2 shards, 3 records checked, no problems"])


@pytest.mark.parametrize("workers", [1, 2])
def test_problems_are_counted_by_reason(tmp_path, capsys, workers):
    first, second = make(tmp_path, [*range(1, 12)], [13, 15])
    well, lines = run(tmp_path, capsys, workers)
    assert not well
    offsets = records.read_index(first)["offset"]
    assert lines[:2] == [
        "NAME: 1 split, 2 shards, 13 records checked, 8 problems",
        "7 numbers are odd: add one",
    ]
    assert lines[2] == f"  {first}: record at byte 0: 1 of numbers, weight 2"
    assert lines[3] == f"  {first}: record at byte {offsets[2]}: 3 of numbers, weight 2"
    assert lines[7] == "  and 2 more"
    assert lines[8].startswith("1 record has frames that cannot be decoded: delete its shard")
    assert lines[9] == f"  {second}: record at byte 0: an unlucky number"
    assert len(lines) == 10


def test_nothing_is_written(tmp_path, capsys):
    make(tmp_path, [2], [3])
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    run(tmp_path, capsys)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("flip", "damaged after byte"),
        ("cut", "damaged after byte"),
        ("gone", "no such file"),
        ("index gone", "its shard was not finished"),
        ("fewer", "1 records in 1 groups, protocol.json says 2 in 2"),
        ("shorter", "1 records, its index has 2"),
        ("moved", "the record at byte 0 is not in the index"),
    ],
)
def test_damaged_shards(tmp_path, capsys, damage, said):
    path, _ = make(tmp_path, [2, 4], [6])
    content, index = bytearray(path.read_bytes()), records.read_index(path).copy()
    if damage == "flip":
        content[int(index["offset"][1]) + 14] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-3])
    elif damage == "gone":
        path.unlink()
    elif damage == "index gone":
        records.index_path(path).unlink()
    elif damage == "fewer":
        np.save(records.index_path(path), index[:1])
    elif damage == "shorter":
        path.write_bytes(content[: int(index["offset"][1])])
    elif damage == "moved":
        index["offset"] += 1
        np.save(records.index_path(path), index)
    well, lines = run(tmp_path, capsys)
    assert not well
    assert lines[0].endswith(" 1 problem")
    assert lines[1].startswith("1 shard is missing, damaged or does not fit its index: delete it")
    assert str(path) in lines[2] or str(records.index_path(path)) in lines[2]
    assert said in lines[2]


def test_records_of_other_features(tmp_path, capsys):
    path, _ = make(tmp_path, [2], [4])
    example = tf.train.Example()
    example.features.feature["number"].bytes_list.value.append(b"two")
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(example.SerializeToString())
    _, lines = run(tmp_path, capsys)
    assert lines[1].startswith("1 record has frames that cannot be decoded")
    assert "number" in lines[2]


def test_no_data_set(tmp_path, capsys):
    with pytest.raises(DataError, match=r"no protocol\.json there"):
        run(tmp_path, capsys)


def test_nothing_was_looked_at(capsys):
    assert check.report("NAME", [], {})
    assert not check.report("NAME", [Found({}, [Problem("odd", "7")])], REASONS)
    assert capsys.readouterr().out.splitlines() == [
        "NAME: nothing checked, no problems",
        "NAME: nothing checked, 1 problem",
        "1 number is odd: add one",
        "  7",
    ]
