"""Several sources, weighted or not; one stream shared by processes; keys, buckets and side tables."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from record_files import assert_equal_batches, decode, make_split, taken

from vlm_jax.data.order import spread
from vlm_jax.data.pipeline import Buckets, EvaluationPipeline, MemoryExamples, MemorySource, TrainPipeline, stack
from vlm_jax.data.record_examples import RecordExamples, RecordSource
from vlm_jax.errors import DataError
from vlm_jax.types import DataShard


def tagged(source, flip):
    """A decode function of one source, with an augmentation of its own."""

    def run(serialised, seed):
        made = decode(serialised, seed)
        return {**made, "source": tf.constant(source), "noise": -made["noise"] if flip else made["noise"]}

    return run


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Sources of 31 and 11 groups."""
    return [make_split(tmp_path_factory.mktemp(name), groups) for name, groups in (("a", [20, 0, 11]), ("b", [4, 7]))]


@pytest.fixture(scope="module")
def examples(splits):
    first, second = splits
    return RecordExamples(RecordSource(first, tagged(0, False)), RecordSource(second, tagged(1, True)), workers=2)


def mixture(examples, index=0, count=1, batch_size=8, seed=0, streams=2, weights=(3, 1), **options):
    options = {"block": 3, **options}
    return TrainPipeline(
        examples, DataShard(index, count, batch_size, seed), streams=streams, weights=weights, **options
    )


def merged(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def memory(*counts, **options):
    """Sources whose examples hold their source and number, and a random number."""

    def source(place, count):
        def read(number, seed):
            return {"source": place, "number": number, "noise": np.random.default_rng(seed).random()}

        return MemorySource(count, read)

    return mixture(MemoryExamples(*(source(*pair) for pair in enumerate(counts))), **options)


@pytest.mark.parametrize(
    ("weights", "pattern"), [((3, 1), [0, 0, 1, 0]), ((6, 2), [0, 0, 1, 0]), ((1, 1, 2), [2, 0, 1, 2]), ((5,), [0])]
)
def test_a_period_spreads_its_sources(weights, pattern):
    assert spread(weights).tolist() == pattern


def test_weighted_records_have_exact_shares(examples):
    made = mixture(examples)
    assert made.epoch_examples() == 40, "42 examples, whole batches"
    epochs = merged(taken(made, 3 * 5))
    assert np.bincount(epochs["source"]).tolist() == [90, 30], "exact over every epoch"
    per_batch = epochs["source"].reshape(-1, 8).sum(1)
    assert set(per_batch.tolist()) == {2}, "and here in every batch"
    # Both sources are decoded, each by its own function.
    assert ((epochs["noise"] < 0).all(1) == (epochs["source"] == 1)).all()
    assert len(np.unique(epochs["noise"], axis=0)) == len(epochs["noise"]), "each epoch augments anew"
    for source, count in ((0, 30), (1, 10)):  # 31 and 11 over two streams
        shown = epochs["group"][epochs["source"] == source]
        seen = [shown[epoch * count : (epoch + 1) * count] for epoch in range(3)]
        assert all(len(np.unique(part)) == count for part in seen), "each in epochs of its own"
        assert not np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize(("batch_size", "streams", "weights"), [(6, 6, (3, 1)), (10, 5, (2, 3)), (12, 1, (7, 1, 3))])
def test_every_batch_is_mixed_and_examples_are_visited_evenly(batch_size, streams, weights):
    counts = (140, 25, 30)[: len(weights)]
    made = memory(*counts, batch_size=batch_size, streams=streams, weights=weights, block=4)
    steps, shares = 60, np.array(weights) / sum(weights)
    found = [np.bincount(batch["source"], minlength=len(weights)) for batch in taken(made, steps)]
    assert np.abs(np.array(found) - shares * batch_size).max() <= 1.5
    assert np.abs(np.sum(found, 0) - shares * batch_size * steps).max() <= streams
    made.restore(0)
    shown = merged(taken(made, steps))
    for source, count in enumerate(counts):
        visits = np.bincount(shown["number"][shown["source"] == source], minlength=count)
        assert np.ptp(visits) <= 2, "as often as any other, and each epoch leaves out others"
    # A mixture's epoch holds whole periods, so that shares are exact.
    per_epoch = made.epoch_examples()
    made.restore(per_epoch)
    epoch = merged(taken(made, per_epoch // batch_size))
    assert (np.bincount(epoch["source"]) * sum(weights) == per_epoch * np.array(weights)).all()


@pytest.mark.parametrize("weights", [(3, 1), ()])
@pytest.mark.parametrize("done", [2, 7])
def test_a_mixture_resumes_exactly_on_any_number_of_processes(examples, weights, done):
    whole = taken(mixture(examples, weights=weights), 9)
    resumed = mixture(examples, weights=weights)
    resumed.restore(8 * done)
    assert_equal_batches(taken(resumed, 9 - done), whole[done:])
    parts = [mixture(examples, index, 2, weights=weights) for index in range(2)]
    for part in parts:
        part.restore(8 * done)
    joined = [merged(batches) for batches in zip(*(taken(part, 2) for part in parts), strict=True)]
    assert_equal_batches(joined, whole[done : done + 2])


def test_without_weights_every_example_comes_once_per_epoch(examples):
    made = mixture(examples, weights=(), batch_size=7, streams=1)
    assert made.epoch_examples() == 42
    for _ in range(2):
        epoch = merged(taken(made, 6))
        shown = set(zip(epoch["source"].tolist(), epoch["group"].tolist(), strict=True))
        assert len(shown) == 42
        assert np.bincount(epoch["source"]).tolist() == [31, 11]
    plain = memory(31, 11, weights=(), batch_size=7, streams=1, block=0)
    assert len(np.unique(np.concatenate([plain.plan(batch).numbers for batch in range(6)]))) == 42
    order = [batch["source"].tolist() for batch in taken(plain, 6)]
    assert sum(0 < sum(sources) < 7 for sources in order) >= 4, "one permutation over both"


def test_a_source_has_its_own_order(examples):
    """The order of the first source alone is that of a pipeline without others; the second one's is another."""
    equal = memory(20, 20, weights=(1, 1), streams=1, batch_size=4, block=0)
    shown = merged(taken(equal, 10))
    first, second = (shown["number"][shown["source"] == source] for source in range(2))
    alone = merged(taken(memory(20, weights=(), streams=1, batch_size=4, block=0), 5))
    np.testing.assert_array_equal(first, alone["number"])
    np.testing.assert_array_equal(shown["noise"][shown["source"] == 0], alone["noise"])
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_one_stream(examples, count):
    for made in (lambda *place: mixture(examples, *place, batch_size=6, streams=1, weights=()), uneven):
        whole = taken(made(0, 1), 4)
        parts = [taken(made(index, count), 4) for index in range(count)]
        assert_equal_batches([merged(batches) for batches in zip(*parts, strict=True)], whole)


def uneven(index, count):
    return memory(20, 9, index=index, count=count, batch_size=6, streams=2, weights=(2, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (3, 1, 1)}, r"weights \[3, 1, 1\], expected 2 positive integers"),
        ({"weights": (3, 0)}, r"weights \[3, 0\], expected 2 positive integers"),
        ({"batch_size": 24, "streams": 12}, r"source 1 has fewer examples than there are streams \(12\)"),
        ({"batch_size": 44}, "42 examples an epoch over 2 streams do not fill a batch of 44"),
        ({"distinct": np.arange(42) % 7}, "7 distinct examples do not fill a batch of 8"),
        ({"buckets": Buckets(np.arange(42), (8, 64))}, None),
    ],
)
def test_numbers_that_do_not_fit(examples, options, message):
    if message is None:
        assert mixture(examples, **options).plan(0).bucket == 64
        with pytest.raises(DataError, match=r"buckets \[8, 40\]: example 41 has length 41"):
            Buckets(np.arange(42), (8, 40))
        return
    with pytest.raises(DataError, match=message) as caught:
        mixture(examples, **options)
    assert str(examples.sources[0].split.directory) in str(caught.value)


def test_batches_chosen_by_key_hold_none_twice(examples):
    keys = np.arange(42) // 4
    made = mixture(examples, distinct=keys)
    for batch in range(12):
        assert len(np.unique(keys[made.plan(batch).numbers])) == 8
    whole = taken(made, 4)
    assert all(len(np.unique(batch["noise"], axis=0)) == 8 for batch in whole)
    made.restore(16)
    assert_equal_batches(taken(made, 2), whole[2:])
    parts = [taken(mixture(examples, index, 2, distinct=keys), 4) for index in range(2)]
    assert_equal_batches([merged(batches) for batches in zip(*parts, strict=True)], whole)


def ragged(lengths):
    return MemoryExamples(MemorySource(len(lengths), lambda number, seed: {"values": np.full(lengths[number], number)}))


def pad(columns, plan):
    values = [np.pad(value, (0, plan.bucket - len(value)), constant_values=-1) for value in columns["values"]]
    return {"values": np.stack(values)}


def test_all_processes_choose_the_bucket_of_the_whole_batch():
    lengths = np.array([1, 2, 3, 9, 4, 2, 16, 1, 1, 3])
    buckets, sizes = Buckets(lengths, (4, 10, 16)), set()
    for batch in range(10):
        parts = []
        for index in range(2):
            made = TrainPipeline(ragged(lengths), DataShard(index, 2, 2), buckets=buckets, collate=pad)
            made.restore(2 * batch)
            parts.append(next(iter(made))["values"])
        longest = lengths[np.concatenate(parts)[:, 0]].max()
        assert [part.shape for part in parts] == [(1, min(size for size in (4, 10, 16) if size >= longest))] * 2
        sizes.add(parts[0].shape[1])
    assert len(sizes) > 1


def test_evaluation_begins_with_the_smallest_bucket():
    lengths = np.array([1, 2, 3, 9, 4, 2, 16, 1, 1, 3, 5])
    buckets = Buckets(lengths, (4, 10, 16))
    for count in (1, 2):
        shards = [DataShard(index, count, 4) for index in range(count)]
        parts = [list(EvaluationPipeline(ragged(lengths), shard, buckets=buckets, collate=pad)) for shard in shards]
        batches = [merged(part) for part in zip(*parts, strict=True)]
        assert [batch["values"].shape for batch in batches] == [(4, 4), (4, 4), (4, 16)]
        shown = np.concatenate([batch["index"] for batch in batches])
        assert shown.tolist() == [0, 1, 2, 4, 5, 7, 8, 9, 3, 10, 6, 11]
        assert np.concatenate([batch["mask"] for batch in batches]).tolist() == [1] * 11 + [0]
        for batch in batches:
            expected = np.where(batch["mask"], batch["index"], 6)
            np.testing.assert_array_equal(batch["values"][:, 0], expected, "padding repeats the last item")


def plane(shapes):
    """Examples `[h, w]` that hold their number."""
    return MemoryExamples(MemorySource(len(shapes), lambda number, seed: {"values": np.full(shapes[number], number)}))


def pad_plane(columns, plan):
    height, width = plan.bucket
    values = [
        np.pad(value, ((0, height - len(value)), (0, width - value.shape[1])), constant_values=-1)
        for value in columns["values"]
    ]
    return {"values": np.stack(values)}


def test_buckets_of_two_dimensions():
    shapes = np.array([[2, 3], [9, 3], [1, 8], [2, 1], [9, 8], [4, 4]])
    buckets = Buckets(shapes, ((4, 10), (3, 6, 8)))
    assert buckets.fit(np.arange(6)).tolist() == [[4, 3], [10, 3], [4, 8], [4, 3], [10, 8], [4, 6]]
    assert buckets.hold(np.array([1, 2])) == (10, 8), "no example is of this bucket, but both fit"
    with pytest.raises(DataError, match=r"^buckets \[3, 6\]: example 2 has length 8$"):
        Buckets(shapes, ((4, 10), (3, 6)))
    assert Buckets(shapes[:0], ((4, 10), (3, 6))).fit(np.arange(0)).shape == (0, 2)
    for count in (1, 2):
        parts = [
            list(EvaluationPipeline(plane(shapes), DataShard(index, count, 2), buckets=buckets, collate=pad_plane))
            for index in range(count)
        ]
        batches = [merged(part) for part in zip(*parts, strict=True)]
        assert [batch["index"].tolist() for batch in batches] == [[0, 3], [5, 2], [1, 4]], "height first, then width"
        assert [batch["values"].shape[1:] for batch in batches] == [(4, 3), (4, 8), (10, 8)]


def test_evaluation_of_several_sources(examples, splits):
    batches = list(EvaluationPipeline(examples, DataShard(0, 1, 9)))
    joined = merged(batches)
    shown = joined["mask"] == 1
    assert shown.sum() == 42
    assert joined["source"][shown].tolist() == [0] * 31 + [1] * 11
    assert joined["id"][shown].tolist() == [*range(31), *range(11)]


def test_a_side_table_is_joined_by_a_key_of_the_examples(splits, tmp_path):
    """A memory-mapped bank beside the records: rows by what the record holds, or by the example's number."""
    table = np.random.default_rng(0).normal(size=(31, 4)).astype(np.float32)
    np.save(tmp_path / "bank.npy", table)
    bank = np.load(tmp_path / "bank.npy", mmap_mode="r")

    def collate(columns, plan):
        arrays = stack(columns, plan)
        return arrays | {"by_key": bank[arrays["group"]], "by_number": bank[plan.own_numbers]}

    read = RecordExamples(RecordSource(splits[0], decode))
    whole = None
    for count in (1, 2):
        parts = [
            taken(TrainPipeline(read, DataShard(index, count, 6), streams=3, block=4, collate=collate), 4)
            for index in range(count)
        ]
        batches = [merged(part) for part in zip(*parts, strict=True)]
        for batch in batches:
            np.testing.assert_array_equal(batch["by_key"], table[batch["group"]])
            np.testing.assert_array_equal(batch["by_number"], table[batch["group"]])
        whole = whole or batches
        assert_equal_batches(batches, whole)
    shown = list(EvaluationPipeline(read, DataShard(0, 1, 8), collate=collate))
    assert all(np.array_equal(batch["by_key"], table[batch["group"]]) for batch in shown)


def test_memory_examples_differ_in_every_epoch():
    made = memory(12, weights=(), streams=1, batch_size=4, block=0)
    epochs = [merged(taken(made, 3)) for _ in range(2)]
    for one, two in itertools.pairwise(epochs):
        assert sorted(one["number"]) == sorted(two["number"]) == list(range(12))
        assert not np.array_equal(one["number"], two["number"])
        assert not set(one["noise"]) & set(two["noise"])
    assert made.position() == 24
