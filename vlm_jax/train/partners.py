"""Mutual watch of a run's processes: if one is killed, the others end with a one-line error.

Without its partner, a process may wait in a collective, where no Python code of the main thread runs. It would wait
for ever, or until jax's own service aborts it with a dump of the C++ stack.
"""

import atexit
import os
import sys
import threading
import time
from typing import Any

# The client of jax's coordination service, which Orbax uses as well; jax has no public name for it.
from jax._src import distributed

INTERVAL = 2.0
"""Interval between two signs of life, seconds."""
PATIENCE = 40.0
"""Time without a sign of life after which a process counts as gone, seconds; jax's service aborts after 100."""
SIGNS = "vlm_jax/signs_of_life"
ENDED = "ended"


def watch() -> None:
    """Start a thread that gives signs of life, and ends this process if another process gives none."""
    client, own = distributed.global_state.client, distributed.global_state.process_id
    atexit.register(lambda: client.key_value_set(f"{SIGNS}/{own}", ENDED, allow_overwrite=True))
    threading.Thread(target=_watch, args=(client, own), daemon=True).start()


def _watch(client: Any, own: int) -> None:
    last: dict[str, tuple[str, float]] = {}
    number = 0
    while True:
        number += 1
        try:
            client.key_value_set(f"{SIGNS}/{own}", str(number), allow_overwrite=True)
            signs = dict(client.key_value_dir_get(SIGNS))
        except Exception:  # the service ends before this thread where the run is over
            return
        now = time.monotonic()
        for name, sign in signs.items():
            if sign != last.get(name, ("", 0.0))[0]:
                last[name] = sign, now
            elif sign != ENDED and now - last[name][1] > PATIENCE:
                _end(name.rpartition("/")[2])
        time.sleep(INTERVAL)


def _end(process: str) -> None:
    print(
        f"error: process {process} of this run has given no sign of life for {PATIENCE:g} s; it has ended or cannot be "
        "reached, and its own output says why",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
