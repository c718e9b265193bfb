"""Reader and writer of csv files: columns, missing cells, times."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlm_jax.errors import DataError
from vlm_jax.files import write_atomically

MISSING = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
"""Cells that the reference's csv reader (pandas) takes for missing. They become the word 'nan'."""

LONGEST = 1e8
"""Upper limit of times, seconds; anything beyond is a mistake."""


def read_rows(path: Path | str | Iterable[str], columns: Sequence[str], name: str = "") -> list[dict[str, str]]:
    """Return the rows of a csv file with a header, as dictionaries by column.

    Args:
      path: Path of the file, or its lines.
      columns: Columns that the file must have.
      name: Name of the file in error messages, by default its path.

    Raises:
      DataError: for a file that cannot be read, a missing column, or a line with too few cells.
    """
    name = name or str(path)
    try:
        lines = io.StringIO(Path(path).read_text(encoding="utf-8-sig")) if isinstance(path, str | Path) else path
        reader = csv.DictReader(lines)
        found = reader.fieldnames or []
        absent = [column for column in columns if column not in found]
        if absent:
            raise DataError(f"{name}: no column {absent[0]!r}; it has {', '.join(found) or 'none'}")
        rows = list(reader)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: not a UTF-8 csv file ({error})") from None
    short = next((number for number, row in enumerate(rows, start=2) if None in (row[c] for c in columns)), None)
    if short:
        raise DataError(f"{name}: line {short} has fewer cells than the header")
    return rows


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a csv file, creating its folder; without a header line if `header` is empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows] if header else rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def cell_text(cell: str) -> str:
    """Return a cell's text, or the word 'nan' for a missing cell."""
    return "nan" if cell in MISSING else cell


def cell_seconds(text: str, place: str) -> float:
    """Return a cell's time, seconds.

    Raises:
      DataError: for a cell that is no time; it names `place`.
    """
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{place}: expected seconds, found {text!r}") from None
    if not 0 <= value < LONGEST:
        raise DataError(f"{place}: expected seconds, found {text!r}")
    return value
