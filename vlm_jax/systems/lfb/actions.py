"""Actions of AVA by their ids, and the files that name the actions of a data set."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlm_jax.errors import DataError
from vlm_jax.files import write_atomically

AVA_ACTIONS: dict[int, str] = dict(
    enumerate(
        (
            *("bend/bow (at the waist)", "crawl", "crouch/kneel", "dance", "fall down", "get up", "jump/leap"),
            *("lie/sleep", "martial art", "run/jog", "sit", "stand", "swim", "walk", "answer phone", "brush teeth"),
            *("carry/hold (an object)", "catch (an object)", "chop", "climb (e.g., a mountain)", "clink glass"),
            *("close (e.g., a door, a box)", "cook", "cut", "dig", "dress/put on clothing", "drink"),
            *("drive (e.g., a car, a truck)", "eat", "enter", "exit", "extract", "fishing", "hit (an object)"),
            *("kick (an object)", "lift/pick up", "listen (e.g., to music)", "open (e.g., a window, a car door)"),
            *("paint", "play board game", "play musical instrument", "play with pets", "point to (an object)", "press"),
            *("pull (an object)", "push (an object)", "put down", "read", "ride (e.g., a bike, a car, a horse)"),
            *("row boat", "sail boat", "shoot", "shovel", "smoke", "stir", "take a photo"),
            *("text on/look at a cellphone", "throw", "touch (an object)", "turn (e.g., a screwdriver)"),
            *("watch (e.g., TV)", "work on a computer", "write", "fight/hit (a person)"),
            *("give/serve (an object) to (a person)", "grab (a person)", "hand clap", "hand shake", "hand wave"),
            *("hug (a person)", "kick (a person)", "kiss (a person)", "lift (a person)", "listen to (a person)"),
            *("play with kids", "push (another person)", "sing to (e.g., self, a person, a group)"),
            *("take (an object) from (a person)", "talk to (e.g., self, a person, a group)", "watch (a person)"),
        ),
        start=1,
    )
)
"""Names of AVA's 80 actions by id."""

EVALUATED = (
    *(1, *range(3, 16), 17, 20, 22, 24, *range(26, 31), 34, 36, 37, 38, 41, 43, *range(45, 50), 51, 52, 54),
    *(*range(56, 71), 72, 73, 74, *range(76, 81)),
)
"""Ids of the 60 actions that AVA evaluates (ava_action_list_v2.1_for_activitynet_2018.pbtxt)."""

_NAME, _ID = re.compile(r'\s*name:\s*"(.*)"\s*'), re.compile(r"\s*(?:label_)?id:\s*(-?\d+)\s*")


def read_actions(path: Path | str) -> dict[int, str]:
    """Return the names of actions by id, in ascending order of ids.

    The file is a label map (.pbtxt: items with a name, then `id` or `label_id`), or a csv file with the columns
    action_id and name.

    Raises:
      DataError: for a file that is missing, names no action, or gives an id below 1 or twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected a list of actions") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of actions ({error})") from None
    found: dict[int, str] = {}
    for number, name, place in (_csv_items if Path(path).suffix == ".csv" else _label_map_items)(text, path):
        if number < 1:
            raise DataError(f"{place}: the action {name!r} has the id {number}, expected ids from 1 on")
        if number in found:
            raise DataError(f"{place}: the id {number} belongs to {found[number]!r} and to {name!r}")
        found[number] = name
    if not found:
        raise DataError(f'{path}: no action; expected items with name: "..." and id: N, or a csv file (action_id,name)')
    return dict(sorted(found.items()))


def _label_map_items(text: str, path: Path | str) -> list[tuple[int, str, str]]:
    items, name = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        place = f"{path}: line {number}"
        if match := _NAME.fullmatch(line):
            name = match[1]
        elif match := _ID.fullmatch(line):
            if name is None:
                raise DataError(f"{place}: an id without a name before it")
            items.append((int(match[1]), name, place))
            name = None
    return items


def _csv_items(text: str, path: Path | str) -> list[tuple[int, str, str]]:
    items = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        place = f"{path}: line {number}"
        try:
            items.append((int(row["action_id"]), str(row["name"]), place))
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{place}: expected the columns action_id (a number) and name, found {row}") from None
    return items


def write_label_map(path: Path, actions: Mapping[int, str]) -> None:
    """Write names of actions by id as a label map (.pbtxt), which `read_actions` and the reference read."""
    items = (f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in actions.items())
    write_atomically(path, "".join(items).encode())


def columns(ids: Sequence[int], num_classes: int) -> dict[int, int]:
    """Return the column of the classifier for each action id.

    A classifier of all actions has the action with id i in column i. A classifier of chosen actions has
    `len(ids) + 1` columns: column 0, which is never used, and one for each action in the order of `ids`
    (open-mmlab/mmaction2, mmaction/datasets/ava_dataset.py, `custom_classes`).
    """
    if num_classes == len(ids) + 1:
        return {number: column for column, number in enumerate(ids, start=1)}
    return {number: number for number in ids}


def ids_of_columns(ids: Sequence[int], num_classes: int) -> list[int]:
    """Return the action id of each column of the classifier, the inverse of `columns`; 0 for column 0."""
    chosen = {column: number for number, column in columns(ids, num_classes).items()}
    return [chosen.get(column, column) for column in range(num_classes)]


def action_names(named: Mapping[str, str], num_classes: int) -> dict[int, str]:
    """Return the names of the actions by id, ascending; those that AVA evaluates, if `config.data.actions` has none."""
    # As keys of JSON they were ordered as text: '1', '10', '2'. Columns follow the order of ids.
    found = dict(sorted((int(number), name) for number, name in named.items()))
    return found or {number: AVA_ACTIONS[number] for number in EVALUATED if number < num_classes}
