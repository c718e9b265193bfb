"""Evaluation that streams: sinks, scoring in blocks, and several processes."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy

from vlm_jax.errors import DataError
from vlm_jax.train import batches, evaluate, scoring, sharding
from vlm_jax.train.sinks import ArraySink
from vlm_jax.types import DataShard

ITEMS = 21


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]).reshape(count, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def variables():
    rng = np.random.default_rng(7)
    return {"params": {"kernel": rng.normal(size=(4, 2)).astype(np.float32), "bias": np.zeros(2, np.float32)}}


def predict(variables, batch):
    out = batch["x"] @ variables["params"]["kernel"]
    return {"out": out, "half": out[:, 0].astype(jnp.bfloat16)}


def distances(variables, rows, columns):
    return jnp.abs(rows["out"][:, None] - columns["out"]).sum(-1) + variables["params"]["bias"][0]


def score(variables, outputs, mesh):
    rows = {"out": outputs["out"]}
    return {"distances": scoring.score_matrix(distances, variables, rows, rows, mesh, row_block=5, column_block=8)}


def summarize(outputs):
    return {"mean": float(outputs["out"].mean()), "far": float(outputs["distances"].max())}


def make_evaluator(sink=ArraySink, items=ITEMS, **changes):
    """The toy system's batches with an evaluator that uses all there is."""
    held = toy.make_task(toy.make_config()).evaluators["held"]
    made = {
        "data": lambda shard: toy.Batches(shard, items=items),
        "predict_fn": predict,
        "sink": lambda folder: sink(folder / "bank", {"version": 1}),
        "score_fn": score,
        "summarize": summarize,
    }
    return dataclasses.replace(held, **{**made, **changes})


def expected():
    x = np.stack([np.random.default_rng(i).normal(size=4) for i in range(ITEMS)]).astype(np.float32)
    return x @ variables()["params"]["kernel"]


class Killed(RuntimeError):
    """In place of a signal."""


class Dying(ArraySink):
    """Writes two batches and dies in the third."""

    def write(self, number, index, outputs):
        if number == 2:
            raise Killed
        super().write(number, index, outputs)


def test_a_sink_gives_what_collecting_gives_whatever_the_batch_size(tmp_path):
    mesh, evaluator = mesh_of(2), make_evaluator()
    collected = evaluate.run(evaluator, variables(), mesh, 8)
    np.testing.assert_allclose(collected.outputs["out"], expected(), rtol=1e-5)
    assert collected.metrics["far"] > 0
    for size in (2, 8, 64):
        streamed = evaluate.run(evaluator, variables(), mesh, size, tmp_path / str(size))
        assert streamed.metrics == pytest.approx(collected.metrics, rel=1e-6)
        assert isinstance(streamed.outputs["out"], np.memmap)
        assert [path.name for path in (tmp_path / str(size)).iterdir()] == ["bank"], "parts are removed"
        files = {path.name for path in (tmp_path / str(size) / "bank").iterdir()}
        assert files == {"out.npy", "half.npy", "evaluation.json"}
        bank = {name: np.load(tmp_path / str(size) / "bank" / f"{name}.npy", mmap_mode="r") for name in ("out", "half")}
        np.testing.assert_allclose(bank["out"], collected.outputs["out"], rtol=1e-6)
        assert bank["half"].dtype == np.float32, "what .npy cannot hold is widened"
        np.testing.assert_array_equal(bank["half"], collected.outputs["half"].astype(np.float32))


def test_a_killed_evaluation_resumes_and_writes_nothing_twice(tmp_path):
    mesh, seen = mesh_of(1), []
    with pytest.raises(Killed):
        evaluate.run(make_evaluator(Dying), variables(), mesh, 8, tmp_path)
    assert not (tmp_path / "bank").exists(), "complete or not at all"
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "bank.parts").glob("*.npz")}
    assert len(parts) == 2

    class Watched(ArraySink):
        def write(self, number, index, outputs):
            seen.append((number, index.tolist()))
            super().write(number, index, outputs)
            assert all(path.stat().st_mtime_ns == time for path, time in parts.items())

    found = evaluate.run(make_evaluator(Watched), variables(), mesh, 8, tmp_path)
    assert seen == [(2, list(range(16, 21)))]
    np.testing.assert_allclose(found.outputs["out"], expected(), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 4}, "batch_size is 8 there, expected 4"),
        ({"scale": 2}, "variables is '[0-9a-f]{64}' there, expected '[0-9a-f]{64}'"),
        ({"protocol": "other"}, "protocol.task is 'regression' there, expected 'other'"),
    ],
)
def test_parts_of_another_evaluation_are_rejected(tmp_path, change, message):
    with pytest.raises(Killed):
        evaluate.run(make_evaluator(Dying), variables(), mesh_of(1), 8, tmp_path)
    values = jax.tree.map(lambda x: x * change.get("scale", 1), variables())
    evaluator = make_evaluator(protocol={"task": change.get("protocol", "regression")})
    with pytest.raises(DataError, match=f"bank.parts: parts of another evaluation: {message}; delete the folder") as e:
        evaluate.run(evaluator, values, mesh_of(1), change.get("size", 8), tmp_path)
    assert "\n" not in str(e.value)


class Misnumbered(toy.Batches):
    """Item 20 comes under another number."""

    number = 20

    def __iter__(self):
        for batch in super().__iter__():
            yield batch | {"index": np.where(batch["index"] == 20, self.number, batch["index"])}


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    ("number", "message"), [(3, "item 20 of 21 is missing"), (21, "found item 21, expected items 0 to 20")]
)
def test_an_item_that_is_missing_twice_or_unknown_is_an_error(tmp_path, folder, number, message):
    def data(shard):
        made = Misnumbered(shard, items=ITEMS)
        made.number = number
        return made

    with pytest.raises(DataError, match=message):
        evaluate.run(make_evaluator(data=data), variables(), mesh_of(1), 8, tmp_path if folder else None)
    assert not (tmp_path / "bank").exists()


def test_an_item_that_comes_twice_beside_all_others():
    class Twice(toy.Batches):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch | {"index": np.minimum(batch["index"], 20), "mask": np.ones(8, np.int32)}

    with pytest.raises(DataError, match=r"^evaluation: item 20 of 21 came more than once$"):
        evaluate.run(make_evaluator(data=lambda shard: Twice(shard, items=ITEMS)), variables(), mesh_of(1), 8)


class Boxes(toy.Batches):
    """Item i has i % 4 boxes; the padding differs from batch to batch."""

    def __iter__(self):
        for batch in super().__iter__():
            number = self.position() // self.shard.batch_size
            boxes = batch["index"][:, None] + 100 * np.arange(3 + number % 2)
            yield batch | {"counts": batch["index"].astype(np.int32) % 4, "boxes": boxes.astype(np.float32)}


def predict_boxes(variables, batch):
    scores = batch["boxes"][..., None] + 0.5 * jnp.arange(3)
    return {"scores": scores, "half": scores[..., 0].astype(jnp.bfloat16), "counts": batch["counts"]}


def make_box_evaluator(sink=ArraySink, data=lambda shard: Boxes(shard, items=ITEMS), **changes):
    """The evaluator of batches with boxes, whose outputs are packed."""
    made = {"data": data, "predict_fn": predict_boxes, "counts": "counts", "score_fn": None, "summarize": None}
    return make_evaluator(sink, **{**made, **changes})


def expected_scores():
    boxes = np.concatenate([item + 100 * np.arange(item % 4) for item in range(ITEMS)])
    return (boxes[:, None] + 0.5 * np.arange(3)).astype(np.float32)


@pytest.mark.parametrize("size", [2, 8, 64])
def test_rows_of_boxes_are_packed_whatever_their_padding(tmp_path, size):
    collected = evaluate.run(make_box_evaluator(), variables(), mesh_of(2), size).outputs
    streamed = evaluate.run(make_box_evaluator(), variables(), mesh_of(2), size, tmp_path).outputs
    assert isinstance(streamed["scores"], np.memmap)
    for outputs in (collected, streamed):
        np.testing.assert_array_equal(outputs["counts"], np.arange(ITEMS) % 4)
        np.testing.assert_array_equal(outputs["scores"], expected_scores())
        np.testing.assert_array_equal(outputs["half"].astype(np.float32), expected_scores()[:, 0])
    assert streamed["half"].dtype == np.float32


def test_parts_hold_only_real_rows_and_a_killed_evaluation_resumes(tmp_path):
    with pytest.raises(Killed):
        evaluate.run(make_box_evaluator(Dying), variables(), mesh_of(1), 8, tmp_path)
    with np.load(tmp_path / "bank.parts" / "0000001-0000.npz") as part:
        assert part["counts"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
        assert part["scores"].shape == (12, 3)
    evaluate.run(make_box_evaluator(), variables(), mesh_of(1), 8, tmp_path)
    evaluate.run(make_box_evaluator(), variables(), mesh_of(1), 8, tmp_path / "whole")
    for name in ("scores.npy", "counts.npy", "half.npy"):
        assert (tmp_path / "bank" / name).read_bytes() == (tmp_path / "whole" / "bank" / name).read_bytes()


def test_no_row_at_all(tmp_path):
    class Empty(Boxes):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch | {"counts": 0 * batch["counts"]}

    evaluator = make_box_evaluator(data=lambda shard: Empty(shard, items=ITEMS))
    for folder in (None, tmp_path):
        found = evaluate.run(evaluator, variables(), mesh_of(1), 8, folder).outputs
        assert found["scores"].shape == (0, 3)
        assert found["counts"].tolist() == [0] * ITEMS


def test_a_count_beyond_the_padded_rows_is_an_error():
    class Wrong(Boxes):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch | {"counts": 9 + batch["counts"]}

    with pytest.raises(DataError, match=r"^evaluation: counts is 12, but half has 4 rows for an item$"):
        evaluate.run(make_box_evaluator(data=lambda shard: Wrong(shard, items=ITEMS)), variables(), mesh_of(1), 8)


def test_predictions_without_a_mesh_and_one_compilation_for_all_calls(caplog):
    def counted(variables, batch):
        return {"out": batch["x"] @ variables["params"]["kernel"]}

    shard = DataShard(batch_size=8)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for _ in range(2):
            found = list(batches.predict_batches(counted, variables(), toy.Batches(shard, items=ITEMS)))
    assert sum(message.startswith("Compiling") and "counted" in message for message in caplog.messages) == 1
    assert [len(index) for index, _ in found] == [8, 8, 5]
    np.testing.assert_allclose(np.concatenate([outputs["out"] for _, outputs in found]), expected(), rtol=1e-5)


def test_reading_ahead_passes_errors_on_and_ends_with_its_reader():
    def items():
        yield 1
        raise OSError("disk")

    reader = batches.read_ahead(items())
    assert next(reader) == 1
    with pytest.raises(OSError, match="disk"):
        next(reader)
    assert list(batches.read_ahead(range(5))) == list(range(5))
    threads = threading.active_count()
    endless = batches.read_ahead(iter(int, 1))
    next(endless)
    endless.close()
    assert threading.active_count() == threads


@pytest.mark.parametrize("devices", [None, 1, 2, 4])
def test_blocks_of_scores_are_those_of_the_whole_matrix_and_compile_once(devices, caplog):
    rng = np.random.default_rng(0)
    mesh = devices and mesh_of(devices)

    def compared(variables, rows, columns):
        return jnp.stack([distances(variables, rows, columns), rows["out"] @ columns["out"].T], -1)

    blocks = {"row_block": 6, "column_block": 5}
    cases = [[{"out": rng.normal(size=(size, 3)).astype(np.float32)} for size in sizes] for sizes in ((13, 7), (1, 11))]
    with jax.log_compiles(), caplog.at_level("WARNING"):
        found = [scoring.score_matrix(compared, variables(), *case, mesh, **blocks) for case in cases]
    assert sum(message.startswith("Compiling") and "compared" in message for message in caplog.messages) == 1
    for case, scores in zip(cases, found, strict=True):
        np.testing.assert_allclose(scores, compared(variables(), *case), rtol=1e-5, atol=1e-6)
    assert scoring.score_matrix(compared, variables(), {"out": np.zeros((0, 3))}, case[1], mesh, **blocks).shape == (
        0,
        11,
        2,
    )


class Unfinished(ArraySink):
    """Has every part on disk, and dies before they are merged."""

    def finish(self, total, counts=""):
        multihost_utils.sync_global_devices("written")
        raise Killed


def main(folder):
    """One of two processes with two devices each; process 1 loses its last part and both resume."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_default_matmul_precision", "highest")
    sharding.initialize()
    process = jax.process_index()
    mesh = sharding.make_mesh(toy.make_config().mesh)
    assert (jax.process_count(), mesh.shape["data"]) == (2, 4)
    collected = evaluate.run(make_evaluator(), variables(), mesh, 8)
    plain = evaluate.run(make_evaluator(score_fn=None, summarize=None), variables(), mesh, 8)
    with pytest.raises(Killed):
        evaluate.run(make_evaluator(Unfinished), variables(), mesh, 8, folder)
    parts = len(list((folder / "bank.parts").glob(f"*-000{process}.npz")))
    multihost_utils.sync_global_devices("listed")
    if process:
        (folder / "bank.parts" / "0000002-0001.npz").unlink()
    numbers = []

    class Watched(ArraySink):
        def write(self, number, index, outputs):
            numbers.append((number, index.tolist()))
            super().write(number, index, outputs)

    streamed = evaluate.run(make_evaluator(Watched), variables(), mesh, 8, folder)
    evaluate.write_results(folder, "held", streamed, dataclasses.replace(make_evaluator(), write=None), {})
    with pytest.raises(Killed):
        evaluate.run(make_box_evaluator(Dying), variables(), mesh, 8, folder / "boxes")
    boxes = evaluate.run(make_box_evaluator(), variables(), mesh, 8).outputs
    evaluate.run(make_box_evaluator(), variables(), mesh, 8, folder / "boxes")
    if process == 0:
        np.testing.assert_array_equal(boxes["scores"], expected_scores())
    found = {
        "metrics": [collected.metrics, streamed.metrics],
        "outputs": [sorted(result.outputs) for result in (collected, plain, streamed)],
        "written": [parts, numbers],
    }
    (folder / f"{process}.json").write_text(json.dumps(found))
    if process == 0:
        np.savez(folder / "collected.npz", **{name: collected.outputs[name] for name in ("out", "distances")})


def test_two_processes_share_an_evaluation(tmp_path, root):
    alone = evaluate.run(make_evaluator(), variables(), mesh_of(1), 8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "VLM_COORDINATOR": f"127.0.0.1:{port}"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            cwd=root,
            env={**environment, "VLM_NUM_PROCESSES": "2", "VLM_PROCESS_ID": str(number)},
        )
        for number in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    for metrics in first["metrics"]:
        assert metrics == pytest.approx(alone.metrics, rel=1e-5)
    assert second["metrics"] == first["metrics"], "both choose the same best checkpoint"
    assert first["outputs"] == [["distances", "half", "out"], ["half", "out"], ["distances", "half", "out"]]
    assert second["outputs"] == [[], [], []]
    # Three batches each; only the one that process 1 lost was computed again, and each has its own half of it.
    assert first["written"] == [3, [[2, [16, 17, 18, 19]]]]
    assert second["written"] == [3, [[2, [20]]]]
    collected = dict(np.load(tmp_path / "collected.npz"))
    np.testing.assert_allclose(collected["out"], alone.outputs["out"], rtol=1e-5)
    np.testing.assert_allclose(collected["distances"], alone.outputs["distances"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.load(tmp_path / "bank" / "out.npy", mmap_mode="r"), collected["out"])
    assert not (tmp_path / "bank.parts").exists()
    evaluate.run(make_box_evaluator(), variables(), mesh_of(1), 8, tmp_path / "alone")
    for name in ("scores.npy", "counts.npy"):
        written = [(tmp_path / folder / "bank" / name).read_bytes() for folder in ("boxes", "alone")]
        assert written[0] == written[1]
    assert json.loads((tmp_path / "held.json").read_text())["metrics"] == first["metrics"][1]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
