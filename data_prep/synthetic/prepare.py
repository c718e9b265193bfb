"""Generate the synthetic world: python -m data_prep.synthetic --output DIR --train 200 --test 40 [--seconds 60]

With `--long_memory --val 40`, generate films in which some actions depend on what was seen long before.

The videos show coloured shapes that move, turn, grow, appear and meet, encoded as H.264. The same simulation gives
exact annotations for every system of this library:

    SPLIT/videos.csv      video_path
    SPLIT/captions/*.csv  start, end, text: narration, seconds too early or too late, with asides
    SPLIT/queries.csv     video_path, start, end, text: one moment per sentence whose reverse occurs as well
    SPLIT/ceilings.json   upper bounds of R@1 on these queries: seeing only the actor, or all but the order of frames
    SPLIT/moments.jsonl   every moment whose sentence is true once in its video (`jsonl` of `vlm_jax/annotations.py`)
    SPLIT/narration.jsonl the narration in the same form, each sentence with the time at which it is said
    SPLIT/boxes.csv       video_id, second, x1, y1, x2, y2 (in [0, 1]), action_id, character_id, as in AVA
    SPLIT/questions.csv   video_path, start, end, question, answer, option_1 to option_5
    SPLIT/pictures/*.png  the beginning of every scene
    SPLIT/snps3/*.jsonl   captions, questions and options about parts and pictures, as SNP-S3 reads them
    validation/snps3/*.jsonl  the same for the last tenth of the training videos, which train/snps3 then lacks
    actions.csv           action_id, name

Train and test share colours, forms and actions, but no composition of the three. The same seed gives the same world.

Long-memory films have, in AVA's form, without headers:

    SPLIT/boxes.csv       video, second, x1, y1, x2, y2, action, character; SPLIT is train, val or test
    SPLIT/proposals.pkl   the boxes alone, as proposals of a detector that finds everyone
    actions.pbtxt         names of the actions
"""

import argparse
import collections
import functools
import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from data_prep.synthetic import captioned, drawing, language, memory
from data_prep.synthetic.world import ACTIONS, SPLITS, Character, Scene, events_of, make_video, visible
from data_prep.tables import write_rows
from vlm_jax import annotations
from vlm_jax.annotations import Query
from vlm_jax.errors import DataError
from vlm_jax.files import write_atomically, write_json
from vlm_jax.progress import Progress
from vlm_jax.systems.lfb.actions import write_label_map
from vlm_jax.video.write import write_video

LABELS = (*ACTIONS, "rest", "come back", "meet a friend", "leave a friend")
"""Action labels, numbered from 1 as in AVA. The last three depend on events long before."""


def make(
    number: int, *, split: str, seed: int, seconds: float, fps: int, size: int, mistiming: float, output: str
) -> dict[str, list]:
    """Make one video and its caption file; return its rows of the split's tables by name."""
    rng = np.random.default_rng((seed, SPLITS.index(split), number))
    scenes = make_video(rng, split, seconds)
    name = f"{number:05d}"
    folder = Path(output) / split
    narration = language.narrate(rng, events_of(scenes), mistiming)
    write_rows(folder / "captions" / f"{name}.csv", ("start", "end", "text"), narration)
    path = folder / "videos" / f"{name}.mp4"
    if not path.exists():
        write_video(path, drawing.frames(scenes, fps, size), fps, gop=fps)
    about = captioned.rows_of_video(np.random.default_rng((seed, SPLITS.index(split), number, 1)), name, scenes, split)
    (folder / "pictures").mkdir(exist_ok=True)
    for picture in {row["clip_name"]: None for row in about["pictures"]}:
        scene = scenes[int(Path(picture).stem.rpartition("_")[2])]
        write_atomically(folder / "pictures" / picture, captioned.png(next(drawing.frames([scene], fps, size))))
    path = f"{name}.mp4"
    told, lasts = language.moments(scenes), round(scenes[-1].end, 2)
    questions = language.questions(rng, scenes)
    return {
        "events": [(path, *_times(e), language.describe(e)) for e in events_of(scenes)],
        "kinds": [language.kinds(event) for event in events_of(scenes)],
        "moments": [annotation(f"{name}_{n}", name, lasts, *moment) for n, moment in enumerate(told)],
        "narration": [annotation(f"{name}_{n}", name, lasts, *said) for n, said in enumerate(narration)],
        "boxes": [(name, *row) for row in boxes(scenes)],
        "questions": [(path, *_times(q), q.question, q.answer, *q.options) for q in questions],
        "about": [about],
    }


def annotation(qid: str, video: str, duration: float, start: float, end: float, text: str) -> Query:
    """Return a sentence with its moment; times are rounded to 0.01 seconds."""
    return Query(qid, video, text, duration, ((round(start, 2), round(end, 2)),))


def boxes(scenes: Sequence[Scene]) -> Iterable[tuple[object, ...]]:
    """Yield one row per whole second, visible character and label: second, x1, y1, x2, y2, action, character."""
    people: dict[Character, int] = {}
    for second, scene, character, pose, acting in visible(scenes):
        labels = [acting.action if acting else "rest"]
        labels += ["come back"] * (character in scene.returning)
        if acting and acting.friends:
            labels.append(f"{acting.action} a friend")
        edges = [round(edge, 4) for edge in drawing.box(character.form, pose)]
        number = people.setdefault(character, len(people))
        yield from ((second, *edges, LABELS.index(label) + 1, number) for label in labels)


def make_world(arguments: argparse.Namespace) -> None:
    """Make both splits. Videos that exist already are kept."""
    settings = {name: getattr(arguments, name) for name in ("seed", "seconds", "fps", "size", "mistiming")}
    _check_begun(arguments.output / "world.json", settings)
    write_rows(arguments.output / "actions.csv", ("action_id", "name"), enumerate(LABELS, start=1))
    for split in SPLITS:
        made = _make_split(make, arguments, split, settings)
        _write_tables(arguments.output / split, made)
        _write_captioned(arguments.output, split, [rows["about"][0] for rows in made])
        print(f"{arguments.output / split}: {len(made)} videos, {sum(len(rows['events']) for rows in made)} events")


def make_long_memory(arguments: argparse.Namespace) -> None:
    """Make the three splits of long-memory films. Films that exist already are kept."""
    settings = {name: getattr(arguments, name) for name in ("seed", "seconds", "fps", "size")}
    _check_begun(arguments.output / "world.json", settings | {"long_memory": True})
    write_label_map(arguments.output / "actions.pbtxt", dict(enumerate(memory.LABELS, start=1)))
    for split in memory.SPLITS:
        made = _make_split(memory.make, arguments, split, settings)
        rows = [row for film in made for row in film]
        folder = arguments.output / split
        write_rows(folder / "boxes.csv", (), rows)
        write_atomically(folder / "proposals.pkl", pickle.dumps(memory.proposals(rows)))
        print(f"{folder}: {len(made)} films, {len({row[:6] for row in rows})} boxes")


def _make_split(make: Callable, arguments: argparse.Namespace, split: str, settings: Mapping[str, object]) -> list:
    """Return what `make` returns for every video of a split."""
    count = getattr(arguments, split)
    (arguments.output / split / "videos").mkdir(parents=True, exist_ok=True)
    make = functools.partial(make, split=split, output=str(arguments.output), **settings)
    made = []
    with (
        ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool,
        Progress(f"{split} videos", count) as progress,
    ):
        for rows in pool.map(make, range(count)):
            made.append(rows)
            progress.advance()
    return made


def _write_tables(folder: Path, made: Sequence[Mapping[str, Sequence]]) -> None:
    moment = ("video_path", "start", "end", "text")
    tables = {name: [row for rows in made for row in rows[name]] for name in made[0]}
    # One query per sentence, only where its reverse is a query too: without the order of frames R@1 is at most 0.5.
    kinds = dict(zip((row[3] for row in tables["events"]), tables["kinds"], strict=True))
    both = {kind for kind, number in collections.Counter(kind for _, kind in kinds.values()).items() if number == 2}
    queries = {row[3]: row for row in reversed(tables["events"]) if kinds[row[3]][1] in both}
    ceilings = {
        f"R@1 of who sees {what}": len({kinds[text][number] for text in queries}) / max(1, len(queries))
        for number, what in enumerate(("only who acts", "all but the order"))
    }
    write_json(folder / "ceilings.json", {"queries": len(queries), **ceilings})
    write_rows(folder / "videos.csv", moment[:1], [(f"{number:05d}.mp4",) for number in range(len(made))])
    write_rows(folder / "queries.csv", moment, sorted(queries.values()))
    for name in ("moments", "narration"):
        annotations.write(folder / f"{name}.jsonl", tables[name])
    place = ("video_id", "second", "x1", "y1", "x2", "y2", "action_id", "character_id")
    write_rows(folder / "boxes.csv", place, tables["boxes"])
    options = [f"option_{number}" for number in range(1, 6)]
    write_rows(folder / "questions.csv", (*moment[:3], "question", "answer", *options), tables["questions"])


def _write_captioned(output: Path, split: str, made: Sequence[captioned.Rows]) -> None:
    last = len(made) - (captioned.validation_videos(len(made)) if split == "train" else 0)
    captioned.write(output / split / "snps3", made[:last], training=split == "train")
    if split == "train":
        captioned.write(output / "validation" / "snps3", made[last:], training=False)


def _times(timed: object) -> tuple[float, float]:
    return round(timed.start, 2), round(timed.end, 2)


def _check_begun(path: Path, settings: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json(path, settings)
    found = json.loads(path.read_text())
    for key, value in settings.items():
        if found.get(key) != value:
            raise DataError(f"{path}: begun with {key} = {found.get(key)!r}, now it is {value!r}; use another --output")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder to write the world to")
    parser.add_argument("--train", type=int, default=200, help="training videos (default: %(default)s)")
    parser.add_argument("--test", type=int, default=40, help="test videos (default: %(default)s)")
    parser.add_argument("--long_memory", action="store_true", help="make long-memory films instead")
    parser.add_argument("--val", type=int, default=40, help="validation videos of --long_memory (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="least length of a video (default: %(default)s)")
    parser.add_argument("--fps", type=int, default=10)
    parser.add_argument("--size", type=int, default=64, help="height and width, even (default: %(default)s)")
    parser.add_argument("--mistiming", type=float, default=2.5, help="largest shift of the narration, seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args(argv)
    for name, least in {
        "train": 1,
        "val": 1,
        "test": 1,
        "seconds": 2 * memory.CUE_SECONDS if arguments.long_memory else 1,
        "fps": 5,
        "size": 32,
        "workers": 1,
        "mistiming": 0,
    }.items():
        if getattr(arguments, name) < least:
            raise DataError(f"--{name}: expected at least {least}, found {getattr(arguments, name)}")
    if arguments.size % 2:
        raise DataError(f"--size: expected an even number, found {arguments.size}")
    make_long_memory(arguments) if arguments.long_memory else make_world(arguments)
