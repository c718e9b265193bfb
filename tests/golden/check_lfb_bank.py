"""Checks of the golden cases of lfb's banks, detections, metrics and learning rates."""

import numpy as np
from lfb_tolerance import check

from vlm_jax.systems.lfb.config import default_config
from vlm_jax.train.schedule import make_schedule


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


CHECKERS = {"lr_schedule": check_lr_schedule}
