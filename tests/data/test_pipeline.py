import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from record_files import assert_equal_batches, decode, make_split, taken

from vlm_jax.data import records
from vlm_jax.data.pipeline import EvaluationPipeline, TrainPipeline
from vlm_jax.data.record_examples import RecordExamples, RecordSource, Split
from vlm_jax.errors import DataError
from vlm_jax.types import DataShard


def read(split, workers=0, decode=decode):
    return RecordExamples(RecordSource(split, decode), workers=workers)


def pipeline(split, batch_size=8, streams=4, block=3, seed=0, index=0, count=1, workers=2):
    shard = DataShard(index, count, batch_size, seed)
    return TrainPipeline(read(split, workers), shard, streams=streams, block=block)


def planned(made, batches, first=0):
    """The record offsets and seeds of some batches, as (path, offset, seed)."""
    return [row[:3] for batch in range(first, first + batches) for row in made.references(batch)]


def one_line(caught, *parts):
    assert "\n" not in str(caught.value)
    for part in parts:
        assert str(part) in str(caught.value)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """26 groups of 2 records in shards of 9, 5, 0 and 12 groups."""
    return make_split(tmp_path_factory.mktemp("split"), [9, 5, 0, 12], records_per_group=2)


@pytest.mark.parametrize(
    ("batch_size", "streams", "block", "visited"),
    [
        (2, 1, 4, 26),  # nothing is left over
        (13, 13, 1, 26),
        (8, 4, 3, 24),  # 26 over 4 streams: 6 each
        (16, 4, 4, 16),  # 6 a stream, 4 a batch: 1 batch
        (3, 1, 100, 24),
    ],
)
def test_an_epoch_visits_each_group_once(split, batch_size, streams, block, visited):
    made = pipeline(split, batch_size, streams, block)
    assert made.epoch_examples() == visited
    for epoch in range(3):
        made.restore(epoch * visited)
        groups = np.concatenate([batch["group"] for batch in taken(made, visited // batch_size)])
        assert len(np.unique(groups)) == len(groups) == visited
        assert made.position() == (epoch + 1) * visited


def test_what_an_epoch_leaves_out_changes(split):
    made = pipeline(split, 16, 4, 4)
    rows = [{place[:2] for place in planned(made, 1, epoch)} for epoch in range(4)]
    assert len(set.union(*rows)) > 2 * 16


def test_the_order_depends_on_seed_and_epoch(split):
    def order(seed, epoch):
        made = pipeline(split, seed=seed)
        return [row[:2] for row in planned(made, 3, 3 * epoch)]

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    for one, two in itertools.combinations(orders, 2):
        assert one != two
    assert orders[4] == order(1, 1)


def test_the_order_within_blocks_depends_on_the_epoch(tmp_path):
    made = pipeline(make_split(tmp_path, [24]), block=6)
    orders = [[row[1] for row in planned(made, 3, 3 * epoch)] for epoch in range(2)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_augmentation_seeds_differ_by_example_and_epoch(split):
    made = pipeline(split)
    seeds = [row[2] for row in planned(made, 12)]
    assert len(set(seeds)) == len(seeds) == 4 * 24
    assert not set(seeds) & {row[2] for row in planned(pipeline(split, seed=1), 12)}
    noise = [batch["noise"] for batch in taken(made, 6)]
    assert len(np.unique(np.concatenate(noise), axis=0)) == 48


def test_two_iterations_are_equal(split):
    assert_equal_batches(taken(pipeline(split, workers=4), 7), taken(pipeline(split, workers=1), 7))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_every_batch(split, count):
    whole = taken(pipeline(split), 5)
    parts = [taken(pipeline(split, index=index, count=count), 5) for index in range(count)]
    assert all(len(batch["id"]) == 8 // count for part in parts for batch in part)
    joined = [
        {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        for batches in zip(*parts, strict=True)
    ]
    assert_equal_batches(joined, whole)


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_restoring_goes_on_exactly(split, done):
    """3 batches an epoch, 2 groups of a stream in a batch, blocks of 3: within a block, and over an epoch's end."""
    whole = taken(pipeline(split), done + 3)
    first = pipeline(split)
    assert_equal_batches(taken(first, done), whole[:done])
    assert first.position() == 8 * done
    # The same object goes on, and so does another one; a prefetched batch was not handed out.
    assert_equal_batches(taken(first, 3), whole[done:])
    second = pipeline(split)
    second.restore(8 * done)
    assert second.position() == 8 * done
    assert_equal_batches(taken(second, 3), whole[done:])
    for index in range(2):
        part = pipeline(split, index=index, count=2)
        part.restore(8 * done)
        for batch, expected in zip(taken(part, 3), whole[done:], strict=True):
            np.testing.assert_array_equal(batch["noise"], expected["noise"][4 * index : 4 * index + 4])


def test_restoring_takes_whole_batches(split):
    with pytest.raises(DataError, match="data position 12 is no multiple of the batch size 8"):
        pipeline(split).restore(12)


def test_fewer_shards_than_streams(tmp_path):
    made = pipeline(make_split(tmp_path, [17]), 8, 8, 2)
    groups = np.concatenate([batch["group"] for batch in taken(made, 2)])
    assert made.epoch_examples() == 16
    assert len(np.unique(groups)) == 16


def test_blocks_are_disjoint(split):
    """Blocks of one leave a stream as it is: so the order within blocks of three is known to stay in them."""

    def streams(block):
        made = pipeline(split, block=block)
        rows = np.array([[row[:2] for row in planned(made, 1, batch)] for batch in range(3)], object)
        return rows.reshape(3, 4, 2, 2).transpose(1, 0, 2, 3).reshape(4, 6, 2)

    plain, permuted = streams(1), streams(3)
    moved = 0
    for stream in range(4):
        for block in range(2):
            window = slice(3 * block, 3 * block + 3)
            before, after = (rows[stream, window].tolist() for rows in (plain, permuted))
            assert sorted(before) == sorted(after)
            moved += before != after
    assert moved >= 4
    # Unpermuted, a stream reads a shard's groups one after the other.
    follows = [a[0] == b[0] and a[1] < b[1] for rows in plain.tolist() for a, b in itertools.pairwise(rows)]
    assert sum(follows) >= len(follows) - 3


def test_records_of_a_group_are_drawn_by_weight(tmp_path):
    split = make_split(tmp_path, [6], 3, weights=[1.0, 0.0, 3.0])
    made = pipeline(split, 6, 1, 6)
    offsets = records.read_index(split.paths[0])["offset"].tolist()
    drawn = [offsets.index(row[1]) for row in planned(made, 400)]
    # Each epoch takes one record of each group.
    assert all(sorted(number // 3 for number in drawn[n : n + 6]) == list(range(6)) for n in range(0, 2400, 6))
    counts = np.bincount([number % 3 for number in drawn], minlength=3)
    assert counts[1] == 0
    assert abs(counts[0] - 600) < 4 * np.sqrt(2400 * 0.25 * 0.75)


@pytest.mark.parametrize(
    ("batch_size", "streams", "count", "message"),
    [
        (32, 4, 1, "26 examples an epoch over 4 streams do not fill a batch of 32"),
        (54, 27, 1, "26 examples an epoch over 27 streams do not fill a batch of 54"),
        (8, 3, 1, "3 streams, a batch of 8, 1 processes"),
        (8, 4, 3, "4 streams, a batch of 8, 3 processes"),
    ],
)
def test_numbers_that_do_not_fit(split, batch_size, streams, count, message):
    with pytest.raises(DataError, match=message) as caught:
        pipeline(split, batch_size, streams, count=count)
    one_line(caught, split.directory)


def evaluation(split, batch_size, index=0, count=1):
    return EvaluationPipeline(read(split), DataShard(index, count, batch_size))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 7), (1, 64), (2, 6), (2, 4), (3, 15), (3, 3), (3, 60)])
def test_evaluation_gives_every_record_once(split, count, batch_size):
    parts = [list(evaluation(split, batch_size, index, count)) for index in range(count)]
    assert {len(part) for part in parts} == {-(-52 // batch_size)}
    batches = [batch for batches in zip(*parts, strict=True) for batch in batches]
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert all(len(batch["mask"]) == batch_size // count for batch in batches)
    np.testing.assert_array_equal(joined["index"], np.arange(len(joined["index"])))
    np.testing.assert_array_equal(joined["mask"], joined["index"] < 52)
    np.testing.assert_array_equal(joined["id"][joined["mask"] == 1], np.arange(52))


def test_an_evaluation_tail_may_be_all_padding(split):
    tail = list(evaluation(split, 9, index=2, count=3))[-1]  # 52 = 5 * 9 + 7: one of the last three is there
    assert tail["mask"].tolist() == [1, 0, 0]
    tail = list(evaluation(split, 60, index=2, count=3))
    assert [batch["mask"].sum() for batch in tail] == [12]
    tail = list(evaluation(split, 48, index=1, count=2))[-1]
    assert tail["mask"].sum() == 0
    assert tail["index"].min() == 72


def test_evaluation_position(split):
    made = evaluation(split, 8)
    whole = list(made)
    assert (made.epoch_examples(), made.position()) == (52, 56)
    assert list(made) == []
    made.restore(24)
    assert_equal_batches(list(made), whole[3:])


def corrupt(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.fixture
def small(tmp_path):
    """12 groups of one record in three shards."""
    return make_split(tmp_path, [4, 4, 4])


def test_a_flipped_byte_is_found(small):
    path = small.paths[1]
    offset = int(small.index(1)["offset"][2])
    corrupt(path, offset + 14)
    message = f"{path}: no undamaged record at byte {offset};"
    made = pipeline(small, 3, 1, 4)
    whole = [row[:2] for row in planned(made, 4)]
    with pytest.raises(DataError, match="no undamaged record") as caught:
        taken(made, 4)
    one_line(caught, message)
    assert caught.value.__cause__ is None
    # What came before the damage was handed out.
    assert made.position() == whole.index((str(path), offset)) // 3 * 3
    with pytest.raises(DataError, match="no undamaged record") as caught:
        list(evaluation(small, 5))
    one_line(caught, message)


def test_a_cut_file_is_found(small):
    offset = int(small.index(1)["offset"][3])
    small.paths[1].write_bytes(small.paths[1].read_bytes()[: offset + 20])
    with pytest.raises(DataError, match=f"no undamaged record at byte {offset}") as caught:
        list(evaluation(small, 4))
    one_line(caught, small.paths[1])
    small.paths[1].write_bytes(small.paths[1].read_bytes()[:offset])
    with pytest.raises(DataError, match=f"no undamaged record at byte {offset}") as caught:
        taken(pipeline(small, 4, 1, 4), 3)
    one_line(caught, small.paths[1])


def train_anew(directory):
    taken(pipeline(Split(directory, "train"), 4, 1, 4), 3)


def evaluate_anew(directory):
    list(evaluation(Split(directory, "train"), 4))


@pytest.mark.parametrize("use", [train_anew, evaluate_anew])
@pytest.mark.parametrize("index", [False, True])
def test_missing_files_are_named(small, use, index):
    path = records.index_path(small.paths[2]) if index else small.paths[2]
    path.unlink()
    message = "no such file; its shard was not finished" if index else "no such file$"
    with pytest.raises(DataError, match=message) as caught:
        use(small.directory)
    one_line(caught, path)


@pytest.mark.parametrize("use", [train_anew, evaluate_anew])
@pytest.mark.parametrize("change", ["fewer", "groups", "offsets"])
def test_an_index_that_does_not_fit(small, change, use):
    path = records.index_path(small.paths[1])
    index = np.load(path)
    if change == "groups":
        index["group"][1] = index["group"][0]
    if change == "offsets":
        index["offset"][1:] += 1
    np.save(path, index[1:] if change == "fewer" else index)
    named = small.paths[1] if change == "offsets" else path
    message = {"fewer": "3 records in 3 groups, protocol.json says 4 in 4", "groups": "4 records in 3 groups"}
    with pytest.raises(DataError, match=message.get(change, "no undamaged record")) as caught:
        use(small.directory)
    one_line(caught, named)


def test_other_errors_are_not_taken_for_damage(small):
    def broken(serialised, seed):
        return {"id": tf.numpy_function(lambda: 1 // 0, [], tf.int64)}

    made = TrainPipeline(read(small, decode=broken), DataShard(0, 1, 4), block=4)
    with pytest.raises(tf.errors.OpError, match="ZeroDivisionError"):
        next(iter(made))


LEAVE_OPEN = """
import sys, time
import numpy as np
import tensorflow as tf
from vlm_jax.data.pipeline import EvaluationPipeline, TrainPipeline
from vlm_jax.data.record_examples import RecordExamples, RecordSource, Split
from vlm_jax.types import DataShard

def slow(seed):
    time.sleep(0.03)
    return np.float32(0)

def decode(serialised, seed):
    return {"noise": tf.ensure_shape(tf.numpy_function(slow, [seed], tf.float32), [])}

split = Split(sys.argv[1], "train")
try:
    list(TrainPipeline(RecordExamples(RecordSource(split, decode), workers=6), DataShard(0, 1, 4), block=4))
except ValueError as error:
    kept = error
opened = iter(EvaluationPipeline(RecordExamples(RecordSource(split, decode), workers=2), DataShard(0, 1, 1)))
next(opened)
print("the end", kept)
"""


def test_a_script_can_end_with_open_pipelines(small, root):
    """What reads ahead calls Python; where that has ended, both would wait for ever."""
    corrupt(small.paths[1], int(small.index(1)["offset"][2]) + 14)
    command = [sys.executable, "-c", LEAVE_OPEN, str(small.directory)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith(f"the end {small.paths[1]}: no undamaged record at byte")
    assert "Exception" not in done.stderr


def test_a_split_that_is_not_there(small, tmp_path):
    with pytest.raises(DataError, match="no split 'test'; it has train") as caught:
        Split(small.directory, "test")
    one_line(caught, small.directory)
    with pytest.raises(DataError, match=r"no protocol\.json there"):
        Split(tmp_path / "nowhere", "train")


def test_indices_are_kept_but_not_all(tmp_path):
    split = make_split(tmp_path, [1] * 70)
    first = split.index(0)
    assert split.index(0) is first
    for shard in range(70):
        split.index(shard)
    assert split.index(69) is split.index(69)
    assert split.index(0) is not first
    assert pipeline(split, 2, 2, 5).epoch_examples() == 70
