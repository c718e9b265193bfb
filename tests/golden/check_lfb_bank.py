"""Checks of the golden cases of lfb's banks, detections, metrics and learning rates."""

import re
import tempfile
from pathlib import Path

import numpy as np
from lfb_tolerance import check

from vlm_jax.interop import torch_files
from vlm_jax.metrics.average_precision import average_precision
from vlm_jax.systems.lfb.annotations import read_excluded
from vlm_jax.systems.lfb.bank import Bank, sample_slots, write_bank
from vlm_jax.systems.lfb.config import default_config
from vlm_jax.systems.lfb.detections import Detections, read_csv, write_csv
from vlm_jax.systems.lfb.metrics import GROUPS, ava_map, rank
from vlm_jax.systems.lfb.reference_bank import SOURCE, read_reference_bank, write_reference_bank
from vlm_jax.train.schedule import make_schedule


def bank_of(arrays):
    """Return a bank of arrays `[n, C]` by names 'VIDEO/SECOND'."""
    videos, seconds = zip(*(name.rsplit("/", 1) for name in arrays), strict=True)
    rows = list(arrays.values())
    return Bank.from_arrays(
        videos, [int(each) for each in seconds], [len(each) for each in rows], np.concatenate(rows), {}
    )


def check_lfb_sampling(case, precision):
    """Compare every slot, given the permutation of every second; both entrances to the rule are checked."""
    bank, width, most = bank_of(case.group("in/bank/")), case.config["window_size"], case.config["max_num_sampled_feat"]
    for number, key in enumerate(case.config["img_keys"]):
        video, second = key.rsplit(",", 1)
        first = int(second) - width // 2
        drawn = {int(at): value for at, value in case.group(f"in/perm/{number}/").items()}
        assert all(first <= at < first + width for at in drawn)
        sizes = np.array([len(drawn.get(at, ())) for at in range(first, first + width)])
        starts = np.cumsum(sizes) - sizes
        permuted = [
            start + drawn[at] for at, start in zip(range(first, first + width), starts, strict=True) if at in drawn
        ]
        order = np.concatenate([np.zeros(0, int), *permuted])[None]
        rows = bank.sample(video, int(second), 1, np.random.default_rng(0), width, most)[0]
        assert len(rows) == bank.rows_in_window(video, int(second), width) == sizes.sum()
        padded = np.concatenate([rows, np.zeros((1, case.config["lfb_channels"]), rows.dtype)]).astype(np.float32)
        check(case, {f"out/{number}": padded[sample_slots(sizes, order, most)[0]]}, precision)


def check_lfb_infer_head(case, precision):
    """Write the bank of both ranks' features, and compare it with the reference's file: order, types and values."""
    written, reference = {}, case.path.with_name("lfb_infer_bank.pkl")
    for process, keys in case.config["keys"].items():
        for number, key in enumerate(keys):
            features = case[f"in/roi_feat/{process}/{number}"].mean(2).max((2, 3))  # over frames, then over cells
            written[key.replace(",", "/")] = features.astype(np.float16)
    names = [f"{video}/{int(second):04d}" for video, second in (key.split("/") for key in written)]
    check(case, {f"out/bank/{name}": value for name, value in zip(names, written.values(), strict=True)}, precision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_bank(path / "bank", *read_reference_bank(reference), SOURCE)
        for bank in (Bank.open([path / "bank"]), bank_of(written)):
            write_reference_bank(path / "ours.pkl", bank)
            ours, wanted = torch_files.load(path / "ours.pkl"), torch_files.load(reference)
            assert list(ours) == list(wanted) == case.config["video_order"]
            for video, seconds in wanted.items():
                assert list(ours[video]) == sorted(seconds)
                found = {f"out/bank/{video}/{second:04d}": np.stack(ours[video][second]) for second in seconds}
                assert all(array.dtype == case[name].dtype == np.float16 for name, array in found.items())
                check(case, found, precision)


def check_lr_schedule(case, precision):
    """Compare the rates of both recipes; the baseline's warm-up rises once per epoch."""
    wanted, config = case.config["lfb"], default_config()
    assert (wanted["lr"], wanted["epochs"]) == (config.schedule.learning_rate, config.epochs)
    length = wanted["iterations_per_epoch"]
    ours = make_schedule(config.schedule, 20 * length, length)(np.arange(20 * length))
    config.schedule.learning_rate, config.schedule.warmup_by_epoch = case.config["baseline"]["lr"], True
    schedule = make_schedule(config.schedule, 20 * length, length)
    firsts = length * np.arange(case.config["baseline"]["epochs"])
    check(case, {"out/lfb": ours, "out/baseline": schedule(firsts)}, precision)
    check(case, {"out/baseline": schedule(firsts + length - 1)}, precision)


def check_results_csv(case, precision):
    """Compare the text of detections for three thresholds."""
    boxes, scores = case["in/bboxes"], case["in/scores"]
    made = Detections.from_rows([(case.config["video_id"], case.config["timestamp"], boxes, scores)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detections.csv"
        for threshold in (0.0, 0.002, -1.0):
            write_csv(path, made, threshold)
            check(case, {f"out/csv_thr{threshold}": np.frombuffer(path.read_bytes(), np.uint8)}, precision)


def worst_and_best(ranking):
    """Return the smallest and the largest average precision that any order of equal scores gives."""
    orders = np.argsort(~ranking.hits, kind="stable"), np.argsort(ranking.hits, kind="stable")
    return [average_precision(ranking.scores[order], ranking.hits[order], ranking.positives) for order in orders]


def check_ava_eval(case, precision):
    """Compare every group's classes, counts, average precisions and their bounds, and the means."""
    groups = sorted({name.split("/")[1] for name in case.arrays})
    for group in groups:
        files, out = case.group(f"in/{group}/"), f"out/{group}"
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content.tobytes())
            truth, found = (read_csv(Path(folder) / f"{name}_csv") for name in ("groundtruth", "detections"))
            excluded = read_excluded(Path(folder) / "excluded_csv") if "excluded_csv" in files else set()
        text = files["labelmap_pbtxt"].tobytes().decode()
        actions = {int(number): name for name, number in re.findall(r'name: "(.*)"\n +id: (\d+)', text)}
        if group.endswith("custom"):
            actions = {number: actions[number] for number in (11, 17, 80)}
        rankings = rank(truth, found, excluded, actions)
        ids = case[f"{out}/class_ids"].tolist()
        assert sorted(ids) == list(rankings)
        metrics = ava_map(truth, found, excluded, actions)
        bounds = np.array([worst_and_best(rankings[number]) for number in ids])
        precisions = [metrics[f"AP/{number} {actions[number]}"] / 100 for number in ids]
        arrays = {
            "class_num_gt": [rankings[number].positives for number in ids],
            "class_ap_stable": precisions,
            "class_ap": precisions,
            "class_ap_ties_worst": bounds[:, 0],
            "class_ap_ties_best": bounds[:, 1],
            "overall": metrics["mAP"] / 100,
            **{name: metrics[f"mAP/{name}"] / 100 for name in GROUPS},
        }
        named = {f"{out}/{name}": np.asarray(value) for name, value in arrays.items()}
        assert named.keys() | {f"{out}/class_ids"} == {name for name in case.arrays if name.startswith(f"{out}/")}
        check(case, named, precision)
        kept = np.nan_to_num(case[f"{out}/class_ap"])
        assert (np.nan_to_num(bounds[:, 0]) <= kept + 1e-12).all()
        assert (kept <= np.nan_to_num(bounds[:, 1]) + 1e-12).all()


CHECKERS = {
    "ava_eval": check_ava_eval,
    "lfb_sampling": check_lfb_sampling,
    "lfb_infer_head": check_lfb_infer_head,
    "lr_schedule": check_lr_schedule,
    "results_csv": check_results_csv,
}
