"""Conversion of feature banks from and to the files of open-mmlab/mmaction2 (`lfb_train.pkl`, `lfb_val.pkl`)."""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from data_prep.commands import Commands
from vlm_jax.errors import DataError
from vlm_jax.systems.lfb.bank import SETTINGS, TYPES, Bank, write_bank
from vlm_jax.systems.lfb.reference_bank import SOURCE, read_reference_bank, write_reference_bank


def convert(arguments: argparse.Namespace) -> None:
    """Convert a bank and print what it holds."""
    if arguments.reverse:
        bank = Bank.open([arguments.source])
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_reference_bank(arguments.output, bank, arguments.dtype)
    else:
        bank = _from_reference(arguments.source, arguments.output, arguments.dtype)
    counts = np.concatenate([rows.counts for rows in bank.videos.values()])
    found = f"{len(bank.videos)} videos, {np.count_nonzero(counts)} seconds, {counts.sum()} features"
    print(f"{arguments.output}: {found} of {bank.dim} {arguments.dtype or bank.dtype.name} numbers")


def _from_reference(source: Path, output: Path, dtype: str) -> Bank:
    """Write the bank of a file and check the number of features of every video.

    Raises:
      DataError: if the folder has a bank already, or the one written differs from the file.
    """
    if (output / SETTINGS).exists():
        raise DataError(f"--output: {output} holds a bank already; delete it or name another folder")
    items = read_reference_bank(source, dtype)
    bank = write_bank(output, *items, SOURCE)
    wanted: Counter[str] = Counter()
    for video, count in zip(items.videos, items.counts.tolist(), strict=True):
        wanted[video] += count
    found = {video: int(rows.counts.sum()) for video, rows in bank.videos.items()}
    if wrong := [video for video, count in wanted.items() if found.get(video) != count]:
        raise DataError(
            f"{output}: video {wrong[0]!r} has {found.get(wrong[0])} features, {source} has {wanted[wrong[0]]}"
        )
    return bank


def add_command(commands: Commands) -> None:
    """Add the command `bank` to a program."""
    made = commands.add_parser("bank", help="a bank of mmaction2 -> our bank, or back with --reverse")
    made.add_argument("--source", required=True, type=Path, help="lfb_train.pkl or the like; with --reverse, a folder")
    made.add_argument("--output", required=True, type=Path, help="folder to write; with --reverse, a file")
    made.add_argument("--dtype", default="", choices=TYPES, help="type of the features (default: that of the source)")
    made.add_argument("--reverse", action="store_true", help="write a file that mmaction2 reads")
    made.set_defaults(run=convert)
