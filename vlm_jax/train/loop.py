"""The training loop of every system."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.stages import Compiled
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.errors import UserError
from vlm_jax.progress import Progress
from vlm_jax.task import Task
from vlm_jax.train import evaluate, sharding
from vlm_jax.train.batches import read_ahead, runs_in_turn
from vlm_jax.train.checkpoint import Checkpoints
from vlm_jax.train.hardware import peak_flops, step_flops
from vlm_jax.train.initialise import check_sources, initialise
from vlm_jax.train.metrics_log import MetricsLog
from vlm_jax.train.setup import Setup, compile_step, prepare
from vlm_jax.train.state import TrainState
from vlm_jax.train.stopping import Stopped, StopSignal
from vlm_jax.types import DataShard, PyTree


class TrainingError(UserError):
    """Training that cannot continue; one line."""


def train(task: Task, config: ConfigDict, workdir: Path) -> TrainState:
    """Train until the last step or a signal to stop, and return the last state.

    Args:
      task: System to train.
      config: Resolved config of the run.
      workdir: Folder of the run; training resumes from its newest checkpoint.

    Raises:
      TrainingError: naming the step at which the loss is not finite; the last checkpoint before it is kept.
      ConfigError: if the batch is larger than an epoch, the task lacks an evaluation, or the workdir holds another run.
      CheckpointError: if a checkpoint cannot be written, or the state to save is not finite.
      KeyboardInterrupt: after Ctrl-C, when the state is saved.
    """
    first = jax.process_index() == 0
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(mesh, config)
    shard = DataShard(jax.process_index(), jax.process_count(), config.batch_size, config.seed)
    pipeline = task.train_data(shard)
    per_epoch = pipeline.epoch_examples() // config.batch_size
    if config.epochs and not per_epoch:
        raise configs.ConfigError(
            f"config.batch_size: {config.batch_size} is more than the {pipeline.epoch_examples()} examples of an epoch"
        )
    total = config.steps or config.epochs * per_epoch
    _check_evaluators(task, config, shard)
    say = functools.partial(_say, first)

    # Resume from this workdir, else initialise from the sources of config.init_from, else from scratch. Nothing is
    # written to the workdir before that has succeeded.
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    resuming = checkpoints.latest_step() is not None
    if resuming:
        _check_run(config, workdir, say)
    setup = prepare(task, config, mesh, total_steps=total, steps_per_epoch=per_epoch)
    position = 0
    if resuming:
        state, position = checkpoints.restore(setup.abstract, config.batch_size, say)
        say(f"resumed from step {int(state.step)} of {workdir}")
    else:
        state = initialise(task, config, setup, say)
    start = int(state.step)
    if first:
        workdir.mkdir(parents=True, exist_ok=True)
        configs.carry_files(config, workdir)
        configs.write(config, workdir / "config.json")

    say(f"{task.name}: {total} steps of {config.batch_size} examples on {_devices()}")
    log = MetricsLog(workdir, start, enabled=first)
    window = _Window(log, config.batch_size, per_epoch, peak_flops())
    steps = _Steps(setup, window, first)
    stop = StopSignal()

    def is_evaluated_at(step: int) -> bool:
        return bool(step and config.evaluate.names) and (step == total or _due(config.evaluate, step, per_epoch))

    def run_evaluators(step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name in config.evaluate.names:
            with stop.ends_at_once():
                found = evaluate.run(
                    task.evaluators[name], state.variables(), mesh, config.evaluate.batch_size, check=stop.check
                )
            metrics |= {f"{name}/{key}": value for key, value in found.metrics.items()}
            say(f"step {step}, {name}: {evaluate.one_line(found.metrics)}")
        log.write(step, metrics)
        return metrics

    def save() -> None:
        """Check the losses up to this step, then save, so that no checkpoint follows a loss that is not finite."""
        window.flush(step)
        checkpoints.save(state, position)

    pipeline.restore(position)
    step = start
    in_turn = runs_in_turn()
    try:
        if step == 0 and config.evaluate.at_start and config.evaluate.names:
            run_evaluators(0)
        elif resuming and is_evaluated_at(step) and not checkpoints.is_evaluated(step):
            checkpoints.record(step, run_evaluators(step))
        progress = Progress("training", total, enabled=first, start=start)
        placed = (sharding.shard_batch(mesh, batch) for batch in pipeline)
        with progress, contextlib.closing(read_ahead(placed)) as batches:
            while step < total:
                waiting = time.monotonic()
                with stop.ends_at_once():
                    batch = next(batches)
                window.waited += time.monotonic() - waiting
                compiled, flops = steps.for_batch(batch)
                state, metrics = compiled(state, batch)
                if in_turn:
                    jax.block_until_ready(metrics)
                step += 1
                position += config.batch_size
                window.add(metrics, flops)
                if step % config.log_every == 0 or step == total:
                    progress.advance(step - progress.n, f"loss {window.flush(step):.4f}")
                if step == total or _due(config.checkpoint, step, per_epoch) or is_evaluated_at(step):
                    save()
                stop.check()
                if is_evaluated_at(step):
                    checkpoints.record(step, run_evaluators(step))
    except Stopped:
        save()
        checkpoints.wait()
        say(f"told to stop: saved step {step} of {total}; the same command resumes there")
        if stop.was_interrupt:
            raise KeyboardInterrupt from None
    except jax.errors.JaxRuntimeError as error:
        raise sharding.explain(error) from None
    finally:
        with contextlib.ExitStack() as closing:
            closing.callback(stop.restore)
            closing.callback(log.close)
            # A save in progress needs all processes: without one of them, waiting for it would never end.
            if not isinstance(sys.exception(), sharding.LostProcessError):
                closing.callback(checkpoints.close)
    return state


def _check_run(config: ConfigDict, workdir: Path, say: Callable[[str], None]) -> None:
    """Check that the config belongs to the run in the workdir, and report the keys that changed.

    Raises:
      ConfigError: if a key differs that defines a run.
    """
    if not (workdir / "config.json").is_file():
        return
    check_sources(config, workdir)
    configs.check_carried_files(config, workdir)
    allowed, refused = configs.changes(config, configs.read(workdir / "config.json"))
    if refused:
        raise configs.ConfigError(
            f"{workdir}: holds another run: {'; '.join(refused)}; resume with the run's own values, or choose another "
            "workdir"
        )
    for line in allowed:
        say(f"changed since the run was last started: {line}")


def _check_evaluators(task: Task, config: ConfigDict, shard: DataShard) -> None:
    """Open the data of every evaluation, so that missing data are reported now and not hours later."""
    for name in config.evaluate.names:
        if name not in task.evaluators:
            known = ", ".join(task.evaluators) or "none"
            raise configs.ConfigError(f"config.evaluate.names: {name!r} is not one of {known}")
        task.evaluators[name].data(shard)


class _Steps:
    """Training step, compiled for every length bucket when its first batch comes."""

    def __init__(self, setup: Setup, window: "_Window", first: bool) -> None:
        self.setup, self.window, self.first = setup, window, first
        self.compiled: dict[tuple[tuple[int, ...], ...], tuple[Compiled, float]] = {}

    def for_batch(self, batch: PyTree) -> tuple[Compiled, float]:
        """Return the compiled step for a batch of these shapes, and its FLOP."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in self.compiled:
            began = time.monotonic()
            compiled = compile_step(self.setup, batch)
            self.compiled[shapes] = compiled, step_flops(compiled)
            seconds = time.monotonic() - began
            self.window.began += seconds  # the training rate excludes compilation
            _say(self.first, f"compiled in {seconds:.0f} s")
        return self.compiled[shapes]


class _Window:
    """Metrics since the last log line, which are fetched from the device only when the next line is written."""

    def __init__(self, log: MetricsLog, batch_size: int, per_epoch: int, peak: float | None) -> None:
        self.log, self.batch_size, self.per_epoch, self.peak = log, batch_size, per_epoch, peak
        self.metrics: list[dict[str, jax.Array]] = []
        self.flops, self.waited, self.began, self.loss = 0.0, 0.0, time.monotonic(), float("nan")

    def add(self, metrics: dict[str, jax.Array], flops: float) -> None:
        self.metrics.append(metrics)
        self.flops += flops

    def flush(self, step: int) -> float:
        """Write one line for the steps since the last one, and return their mean loss.

        Raises:
          TrainingError: if a loss is not finite.
        """
        if not self.metrics:
            return self.loss
        values = jax.device_get(self.metrics)
        count = len(values)
        for number, value in enumerate(values, start=step - count + 1):
            if not np.isfinite(value["loss"]):
                raise TrainingError(
                    f"step {number}: the loss is {value['loss']}; stopped, and the last checkpoint before it was kept"
                )
        now = time.monotonic()
        seconds = max(now - self.began, 1e-9)
        means = {name: float(np.mean([value[name] for value in values])) for name in values[0]}
        self.loss = means.pop("loss")
        line = {
            "loss": self.loss,
            "learning_rate": float(values[-1]["learning_rate"]),
            "examples_per_second": count * self.batch_size / seconds,
            "data_wait": min(self.waited / seconds, 1.0),
        }
        if self.per_epoch:
            line["epoch"] = step / self.per_epoch
        if self.peak:
            line["mfu"] = self.flops / seconds / self.peak
        means.pop("learning_rate")
        self.log.write(step, line | means)
        self.metrics, self.flops, self.waited, self.began = [], 0.0, 0.0, now
        return self.loss


def _due(config: ConfigDict, step: int, per_epoch: int) -> bool:
    """Return whether a config section with `every_steps` and `every_epochs` is due after a step."""
    by_step = config.every_steps and step % config.every_steps == 0
    return bool(by_step or (config.every_epochs and per_epoch and step % (config.every_epochs * per_epoch) == 0))


def _devices() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)"


def _say(first: bool, line: str) -> None:
    if first:
        print(line, flush=True)
