"""CTRL's batches: order, position, processes, and what is asked of the data."""

import dataclasses

import ctrl_files
import numpy as np
import pytest

from vlm_jax.errors import DataError
from vlm_jax.systems.ctrl import data, samples, windows
from vlm_jax.types import DataShard

SPEC = samples.SampleSpec(visual_dim=3 * ctrl_files.WIDTH, sentence_dim=ctrl_files.VECTOR)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ctrl_files.prepare(ctrl_files.write(tmp_path_factory.mktemp("moments")))


@pytest.fixture(scope="module")
def content(folder):
    return data.load(str(folder / "windows"), str(folder / "queries"), "train", SPEC)


def pipeline(content, batch=8, index=0, count=1, seed=3, **options):
    spec = dataclasses.replace(SPEC, **options)
    return samples.train_pipeline(content, spec, DataShard(index, count, batch, seed))


def pairs(content, **options):
    return samples.find_pairs(content, dataclasses.replace(SPEC, **options)).numbers


def take(batches, count):
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_an_epoch_holds_every_pair_once_and_the_next_one_in_another_order(content):
    made = pipeline(content)
    per_epoch = made.epoch_examples() // 8
    assert made.epoch_examples() == len(pairs(content)) // 8 * 8 > 50
    epochs = [np.concatenate([made.plan(epoch * per_epoch + n).numbers for n in range(per_epoch)]) for epoch in (0, 1)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == len(epoch)
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], np.sort(epochs[0]))


def test_examples_are_windows_with_their_context_sentences_and_offsets(content):
    made = pipeline(content, context_num=2, context="nearest")
    (batch,) = take(made, 1)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "visual": ((8, 24), np.float32),
        "sentence": ((8, 10), np.float32),
        "offsets": ((8, 2), np.float32),
    }
    places = [(video, row) for video in content.videos for row in range(len(video.spans))]
    for number, (window, sentence) in enumerate(pairs(content)[made.plan(0).numbers]):
        (video, row), query = places[window], content.queries[sentence]
        assert video.name == query.video
        overlap, outside = windows.overlap_and_outside(video.spans[row], query.span)
        assert overlap > 0.5
        assert outside < 0.15
        np.testing.assert_array_equal(batch["offsets"][number], query.span - video.spans[row])
        np.testing.assert_array_equal(batch["sentence"][number], query.vector)
        np.testing.assert_array_equal(batch["visual"][number], video.visual(row))
        np.testing.assert_array_equal(batch["visual"][number, 8:16], video.features[row])


def test_resuming_is_exact_on_any_number_of_processes(content):
    for options in ({}, {"unique_clips": True}):
        whole = take(pipeline(content, **options), 30)
        resumed = pipeline(content, **options)
        resumed.restore(17 * 8)
        assert all(same(*pair) for pair in zip(take(resumed, 13), whole[17:], strict=True))
        assert resumed.position() == 30 * 8
        halves = [take(pipeline(content, index=index, count=2, **options), 3) for index in range(2)]
        for number in range(3):
            joined = {name: np.concatenate([half[number][name] for half in halves]) for name in whole[0]}
            assert same(joined, whole[number])
        assert not same(take(pipeline(content, seed=4, **options), 1)[0], whole[0])
    with pytest.raises(DataError, match="data position 5 is no multiple of the batch size 8"):
        resumed.restore(5)


def test_no_moment_twice_in_a_batch_if_so_wanted(content):
    twice = 0
    for unique in (False, True):
        made = pipeline(content, batch=20, unique_clips=unique)
        for number in range(40):
            queries = [content.queries[sentence] for sentence in pairs(content)[made.plan(number).numbers, 1]]
            moments = {(query.video, *query.span.tolist()) for query in queries}
            assert not unique or len(moments) == 20
            twice += len(moments) < 20
    assert twice > 30


def test_thresholds_decide_the_pairs(content):
    strict = pairs(content, min_overlap=0.7, max_outside=0.05)
    loose = pairs(content, min_overlap=0.2, max_outside=0.5)
    assert len(strict) < len(pairs(content)) < len(loose)


def test_what_does_not_fill_a_batch(content):
    with pytest.raises(
        DataError, match=r"do not fill a batch of 5000 \(60 sentences, \d+ windows of 5 of their videos"
    ):
        pipeline(content, batch=5000)
    with pytest.raises(DataError, match="30 moments of windows and sentences do not fill a batch of 31"):
        pipeline(content, batch=31, unique_clips=True)
    with pytest.raises(DataError, match="0 pairs"):
        pipeline(samples.MomentData([], content.queries), batch=1)


def test_evaluation_shows_every_window_and_every_sentence_once(folder):
    content = data.load(str(folder / "windows"), str(folder / "queries"), "test", SPEC)
    assert [video.name for video in content.videos] == ["s5-d_5.avi"], "windows of other videos are not read"
    (video,) = content.videos
    rows = max(len(video.spans), len(content.queries))
    assert samples.evaluation_pipeline(content, SPEC, DataShard(0, 1, 16)).epoch_examples() == rows
    for count in (1, 2):
        parts = [
            list(samples.evaluation_pipeline(content, SPEC, DataShard(index, count, 16, 0))) for index in range(count)
        ]
        assert len({len(part) for part in parts}) == 1
        merged = {name: np.concatenate([batch[name] for part in parts for batch in part]) for name in parts[0][0]}
        shown = merged["mask"] == 1
        assert sorted(merged["index"][shown]) == list(range(rows))
        order = np.argsort(merged["index"][shown])
        visual, sentence = merged["visual"][shown][order], merged["sentence"][shown][order]
        assert all(np.array_equal(visual[row], video.visual(row)) for row in range(len(video.spans)))
        assert all(np.array_equal(sentence[n], query.vector) for n, query in enumerate(content.queries))
        assert not sentence[len(content.queries) :].any()


def test_data_of_other_sizes_is_refused(folder):
    for key, message in (
        ("visual_dim", "feature_dim = 8, the config asks for 2"),
        ("sentence_dim", "sentence_dim = 10"),
    ):
        with pytest.raises(DataError, match=message):
            data.load(str(folder / "windows"), str(folder / "queries"), "train", dataclasses.replace(SPEC, **{key: 6}))
    with pytest.raises(DataError, match="context: 'far' is not one of exact, nearest"):
        data.load("", "", "train", dataclasses.replace(SPEC, context="far"))


def test_a_damaged_file_is_named(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "queries", tmp_path / "queries")
    path = next((tmp_path / "queries").glob("queries-train.tfrecord*"))
    content = bytearray(path.read_bytes())
    content[40] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=path.name):
        data.load(str(folder / "windows"), str(tmp_path / "queries"), "train", SPEC)
