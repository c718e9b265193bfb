"""GroundNLQ's batches: order, padding, targets, jitter, evaluation, and what is rejected."""

import dataclasses

import nlq_files
import numpy as np
import pytest

from vlm_jax.data.feature_store import CLIPS, FeatureStore, clip_features
from vlm_jax.data.records import Record, finalize, shard_path, write_shard
from vlm_jax.errors import DataError
from vlm_jax.systems.groundnlq import data, samples
from vlm_jax.systems.groundnlq.point_labels import assign, points
from vlm_jax.types import DataShard

RANGES = ((0, 4), (2, 8), (4, 10000))
SPEC = samples.SampleSpec(
    video_dim=nlq_files.WIDTH,
    text_dim=nlq_files.WORD,
    max_tokens=6,
    max_length=64,
    buckets=(40, 48, 64),
    ranges=RANGES,
    feature_stride=nlq_files.STRIDE,
    fps=nlq_files.FPS,
    groups=2,
    reference_batch=4,
)
WANTED = {"feature_dim": nlq_files.WIDTH}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return nlq_files.prepare(nlq_files.write(tmp_path_factory.mktemp("nlq"), clips=12))


@pytest.fixture(scope="module")
def store(folder):
    found = FeatureStore(str(folder / "features"), WANTED)
    found.load(f"clip{number}" for number in range(12))
    return found


@pytest.fixture(scope="module")
def queries(folder):
    return data.load_queries(str(folder / "queries"), "train", SPEC)


def batches(pipeline, count):
    iterator = iter(pipeline)
    return [next(iterator) for _ in range(count)]


def test_the_order_depends_on_seed_and_position_alone(store, queries):
    def make(index=0, count=1, seed=3, jitter=True):
        spec = dataclasses.replace(SPEC, jitter=jitter)
        return samples.train_pipeline(queries, store, spec, DataShard(index, count, 4, seed))

    whole = make()
    assert (len(queries), whole.epoch_examples()) == (18, 16), "what fills no batch is dropped"
    first = batches(whole, 9)
    assert whole.position() == 36
    resumed = make()
    resumed.restore(20)
    for ours, theirs in zip(batches(resumed, 4), first[5:], strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    halves = [batches(make(index, 2), 9) for index in range(2)]
    for number, batch in enumerate(first):
        for name, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([half[number][name] for half in halves]), value, err_msg=name)
    numbers = np.concatenate([whole.plan(batch).numbers for batch in range(4)])
    assert len(set(numbers.tolist())) == 16
    assert not np.array_equal(numbers, np.concatenate([whole.plan(batch).numbers for batch in range(4, 8)]))
    assert not np.array_equal(make(seed=4).plan(0).numbers, whole.plan(0).numbers)
    with pytest.raises(DataError, match="position 5 is no multiple of the batch size 4"):
        whole.restore(5)


def test_batches_hold_padded_features_and_targets(store, queries):
    pipeline = samples.train_pipeline(queries, store, SPEC, DataShard(0, 1, 4, 1))
    lengths = set()
    for number, batch in enumerate(batches(pipeline, 8)):
        shown = [queries[place] for place in pipeline.plan(number).numbers]
        longest = max(store.length(query.clip) for query in shown)
        bucket = batch["video"].shape[1]
        lengths.add(bucket)
        assert bucket == min(size for size in SPEC.buckets if size >= longest + 4)
        extents = [max(len(query.tokens) for query in shown[part]) for part in (slice(0, 2), slice(2, 4))]
        np.testing.assert_array_equal(batch["extent"].sum(1), np.repeat(extents, 2))
        for row, query in enumerate(shown):
            count, words = store.length(query.clip), len(query.tokens)
            np.testing.assert_array_equal(batch["video"][row, :count], store[query.clip])
            assert not batch["video"][row, count:].any()
            np.testing.assert_array_equal(batch["video_mask"][row], np.arange(bucket) < count)
            np.testing.assert_array_equal(batch["text"][row, :words], query.tokens)
            np.testing.assert_array_equal(batch["text_mask"][row], np.arange(6) < words)
            segments = query.spans * nlq_files.FPS / nlq_files.STRIDE
            classes, offsets = assign(points(bucket, RANGES), segments)
            np.testing.assert_array_equal(batch["class_targets"][row], classes)
            np.testing.assert_array_equal(batch["offset_targets"][row], offsets.astype(np.float32))
            assert classes.any()
    assert len(lengths) > 1


def test_a_bucket_leaves_the_last_stride_free_or_is_full():
    buckets = samples.SampleSpec(buckets=(1024, 2048, 2560)).make_buckets([1, 960, 961, 1984, 1985, 2496, 2560])
    assert buckets.fit(np.arange(7)).tolist() == [1024, 1024, 2048, 2048, 2560, 2560, 2560]
    assert samples.SampleSpec().make_buckets([5]).fit(np.arange(1)).tolist() == [2560]


def test_jitter_shifts_and_dilates_anew_in_every_epoch(store, queries):
    spans = np.array([[10.0, 14.0]])
    assert samples.jittered(spans, np.array([[1, 0.7]])).tolist() == [[10, 14]], "scale 1 stays where it was"
    assert samples.jittered(spans, np.array([[3, 1.0]])).tolist() == [[2, 14]]
    assert samples.jittered(spans, np.array([[3, -1.0]])).tolist() == [[10, 22]]
    plain = samples.train_pipeline(queries, store, SPEC, DataShard(0, 1, 18, 1))
    jitter = samples.train_pipeline(queries, store, dataclasses.replace(SPEC, jitter=True), DataShard(0, 1, 18, 1))
    epochs = batches(jitter, 2)
    for number, batch in enumerate(batches(plain, 2)):
        assert not np.array_equal(batch["class_targets"], epochs[number]["class_targets"])
        np.testing.assert_array_equal(batch["video"], epochs[number]["video"])
    by_query = []
    for number, batch in enumerate(epochs):
        order = np.argsort(jitter.plan(number).numbers)
        by_query.append(batch["class_targets"][order])
    assert not np.array_equal(*by_query)


@pytest.mark.parametrize("size", [4, 6])
def test_evaluation_shows_every_question_once_on_any_number_of_processes(folder, store, size):
    queries = data.load_queries(str(folder / "queries"), "validation", SPEC)
    extents = np.repeat([max(len(q.tokens) for q in queries[at : at + 4]) for at in range(0, len(queries), 4)], 4)
    for count in (1, 2):
        shards = [DataShard(index, count, size) for index in range(count)]
        parts = [list(samples.evaluation_pipeline(queries, store, SPEC, shard)) for shard in shards]
        assert len({len(part) for part in parts}) == 1
        seen = []
        for step in range(len(parts[0])):
            assert len({part[step]["video"].shape for part in parts}) == 1, "all processes pad to one bucket"
            for part in parts:
                batch = part[step]
                for row, number in enumerate(batch["index"]):
                    if not batch["mask"][row]:
                        continue
                    seen.append(int(number))
                    query = queries[number]
                    np.testing.assert_array_equal(batch["video"][row, : store.length(query.clip)], store[query.clip])
                    assert batch["extent"][row].sum() == extents[number], "goes by the file, not by the batch"
                    assert batch["duration"][row] == query.duration
        assert sorted(seen) == list(range(len(queries)))


def features(folder, dtype="float32", **arrays):
    """A data set of clips that no preparation has looked through."""
    path = shard_path(folder, "features", CLIPS, 0, 1)
    records = [
        Record({"clip": name, "features": array, "duration": np.float64(0)}, place)
        for place, (name, array) in enumerate(arrays.items())
    ]
    write_shard(path, clip_features(dtype), records)
    protocol = {"kind": "clip_features", "feature_dim": nlq_files.WIDTH, "dtype": dtype, "video_source": "theirs"}
    finalize(folder, "features", CLIPS, 1, clip_features(dtype), protocol)
    return str(folder)


def test_what_is_wrong_is_said_in_a_line(folder, store, queries, tmp_path):
    shard = DataShard(0, 1, 4)
    with pytest.raises(DataError, match="18 questions do not fill a batch of 19"):
        samples.train_pipeline(queries, store, SPEC, DataShard(0, 1, 19))
    with pytest.raises(DataError, match=r"clip clip\d+ has \d+ positions, training takes up to 32"):
        samples.train_pipeline(queries, store, dataclasses.replace(SPEC, max_length=32), shard)
    with pytest.raises(DataError, match=r"question ann3_0 has no answer to train on; is this a test split"):
        samples.train_pipeline(data.load_queries(str(folder / "queries"), "test", SPEC), store, SPEC, shard)
    with pytest.raises(DataError, match=r"question \S+ has 4 words' features, expected 1 to 3"):
        data.load_queries(str(folder / "queries"), "train", dataclasses.replace(SPEC, max_tokens=3))
    with pytest.raises(DataError, match="text_dim = 8, the config asks for 9"):
        data.load_queries(str(folder / "queries"), "train", dataclasses.replace(SPEC, text_dim=9))
    with pytest.raises(DataError, match="text_source = '', the config asks for 'words:x'"):
        data.load_queries(str(folder / "queries"), "train", SPEC, "words:x")
    with pytest.raises(DataError, match="no split 'dev'"):
        data.load_queries(str(folder / "queries"), "train+dev", SPEC)
    with pytest.raises(DataError, match="no split 'clips'; it has"):
        FeatureStore(str(folder / "queries"), WANTED)
    rows = np.zeros((3, nlq_files.WIDTH), np.float32)
    other = features(tmp_path, clip0=rows, clip1=np.full_like(rows, np.nan))
    with pytest.raises(DataError, match="video_source = 'theirs', the config asks for ''"):
        FeatureStore(other, {**WANTED, "video_source": ""})
    half = FeatureStore(other, WANTED, "bfloat16")
    half.load(["clip0"])
    assert half["clip0"].dtype.itemsize == 2
    with pytest.raises(DataError, match="clip clip1: its features hold numbers that are not finite"):
        half.load(["clip1"])
    with pytest.raises(DataError, match="no features of clip clip4 and 1 more, which questions are about"):
        half.load(["clip0", "clip4", "clip5"])
    with pytest.raises(DataError, match="type of features: 'int8' is not one of float32, bfloat16, float16"):
        FeatureStore(other, WANTED, "int8")
