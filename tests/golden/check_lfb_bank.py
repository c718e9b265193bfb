"""Checks of the golden cases of lfb's banks, detections, metrics and learning rates."""

import tempfile
from pathlib import Path

import numpy as np
from lfb_tolerance import check

from vlm_jax.interop import torch_files
from vlm_jax.systems.lfb.bank import Bank, sample_slots, write_bank
from vlm_jax.systems.lfb.config import default_config
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
    for rank, keys in case.config["keys"].items():
        for number, key in enumerate(keys):
            features = case[f"in/roi_feat/{rank}/{number}"].mean(2).max((2, 3))  # over frames, then over cells
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


CHECKERS = {
    "lfb_sampling": check_lfb_sampling,
    "lfb_infer_head": check_lfb_infer_head,
    "lr_schedule": check_lr_schedule,
}
