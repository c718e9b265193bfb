"""Captions, questions and answers about short parts of the synthetic world, in the JSON lines of SNP-S3.

A part is the time of one event. Its caption says who does what, and which other shapes are where, so that two parts
have the same caption only if they show the same. Four frames of a part answer every question about it; the question
alone does not. The test split has compositions that training never shows, and wrong options are of the same split.
"""

import collections
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.synthetic.language import PHRASES, name, sentence
from data_prep.synthetic.world import COLOURS, FORMS, Character, Event, Pose, Scene, actions_of, reverse
from vlm_jax.files import write_atomically

ANSWERS = {
    "right": "move right",
    "left": "move left",
    "up": "move up",
    "down": "move down",
    "clockwise": "turn clockwise",
    "counterclockwise": "turn counterclockwise",
}
"""Answers that name an action; other actions are their own answer."""
NUMBERS = ("zero", "one", "two", "three")
WORDINGS = 3
"""Captions of a training part, one per wording of its action; the other splits have the first."""
NEAR_THE_MIDDLE = 0.06
"""Distance from the picture's middle lines below which nobody asks where a shape is, as a fraction of its side."""
HELD_OUT = 10
"""One of so many training videos is held out for validation."""

Rows = dict[str, list[dict[str, object]]]


def validation_videos(count: int) -> int:
    """Return the number of videos at the end of `count` training videos that are held out for validation."""
    return max(1, count // HELD_OUT) if count > 1 else 0


def rows_of_video(rng: np.random.Generator, video: str, scenes: Sequence[Scene], split: str) -> Rows:
    """Return the rows about a video by use: pictures, pretraining, retrieval, question_answering, multiple_choice.

    Args:
      rng: Generator of the choices among questions and options.
      video: Name of the video without ending.
      scenes: Scenes of the video.
      split: Split of the world, whose compositions wrong options have.
    """
    rows: Rows = {use: [] for use in ("pictures", "pretraining", "question_answering", "multiple_choice")}
    for number, scene in enumerate(scenes):
        for order, text in enumerate(picture_captions(scene.poses)):
            picture = {"clip_name": f"{video}_{number}.png", "type": "image"}
            rows["pictures"].append({"caption": text, "sen_id": order, **picture})
        for event in scene.events:
            place = {"clip_name": f"{video}.mp4", "type": "video"}
            place |= {"start": round(event.start, 2), "end": round(event.end, 2)}
            qid = f"{video}_{place['start']}"
            texts = [caption(event, scene, wording) for wording in range(WORDINGS)]
            rows["pretraining"] += [{"caption": text, "sen_id": n, **place} for n, text in enumerate(texts)]
            for place_in_part, (question, answer) in enumerate(questions(rng, event, scene)):
                asked = {"qid": f"{qid}_{place_in_part}", "caption": question, "label": answer}
                rows["question_answering"].append(asked | place)
            options = [sentence(event.actor, event.action, event.partner), *wrong_options(rng, event, scene, split)]
            order = rng.permutation(len(options)).tolist()
            asked = {"qid": qid, "title": "what happens", "answer": str(order.index(0))}
            rows["multiple_choice"].append(asked | {"options": [options[n] for n in order]} | place)
    return rows


def write(folder: Path, videos: Iterable[Mapping[str, Sequence[Mapping[str, object]]]], training: bool) -> None:
    """Write the rows of a split's videos, one file of JSON lines per use.

    Retrieval has the parts whose description is that of no other part of the split. Only training has several captions
    of a part.
    """
    rows: dict[str, list[Mapping[str, object]]] = collections.defaultdict(list)
    for made in videos:
        for use, found in made.items():
            rows[use] += found
    counts = collections.Counter(row["caption"] for row in rows["pretraining"])
    parts: dict[tuple[object, ...], list[Mapping[str, object]]] = collections.defaultdict(list)
    for row in rows["pretraining"]:
        parts[row["clip_name"], row["start"], row["end"]].append(row)
    unique = [part[: None if training else 1] for part in parts.values() if counts[part[0]["caption"]] == 1]
    rows["retrieval"] = [row for part in unique for row in part]
    folder.mkdir(parents=True, exist_ok=True)
    for use, found in rows.items():
        write_atomically(folder / f"{use}.jsonl", "".join(json.dumps(row) + "\n" for row in found).encode())


def caption(event: Event, scene: Scene, wording: int) -> str:
    """Return a caption of an event: the actor's action in one of three wordings, and where the other shapes are."""
    poses = scene.poses_at(event.start)
    others = {who: pose for who, pose in poses.items() if pose.opacity and who not in (event.actor, event.partner)}
    told = " and ".join(f"{who} is at the {quadrant(pose)}" for who, pose in sorted(_named(others)))
    text = sentence(event.actor, event.action, event.partner, wording)
    return f"{text} while {told}" if told else text


def picture_captions(poses: Mapping[Character, Pose]) -> list[str]:
    """Return captions of a still picture, one per order of its shapes, at most two; none if it shows no shape."""
    shown = {who: pose for who, pose in poses.items() if pose.opacity}
    told = [f"{who} at the {quadrant(pose)}" for who, pose in sorted(_named(shown))]
    return list(dict.fromkeys(" and ".join(order) for order in (told, told[::-1]) if order))


def questions(rng: np.random.Generator, event: Event, scene: Scene) -> Iterator[tuple[str, str]]:
    """Yield three questions about an event with short answers: what somebody does, who does it, and a static one."""
    shape = name(event.actor).removeprefix("the ")
    does = PHRASES[event.action][0] + (f" {name(event.partner)}" if event.partner else "")
    yield f"what does the {shape} do", ANSWERS.get(event.action, event.action)
    yield f"which shape {does}", shape
    before, after = scene.poses_at(event.start), scene.poses_at(event.end)
    seen = [who for who in scene.poses if before[who].opacity or after[who].opacity]
    left = [who for who in scene.poses if after[who].opacity]
    static = [("how many shapes are there in the end", NUMBERS[len(left)])]
    forms = collections.Counter(who.form for who in seen)
    static += [(f"what colour is the {who.form}", who.colour) for who in seen if forms[who.form] == 1][:1]
    placed = [who for who in left if min(abs(after[who].x - 0.5), abs(after[who].y - 0.5)) > NEAR_THE_MIDDLE]
    static += [(f"where is {name(who)} in the end", quadrant(after[who])) for who in placed][:1]
    absent = [who for colour in COLOURS for form in FORMS if (who := Character(colour, form)) not in seen]
    there = bool(rng.integers(2))
    asked = seen[rng.integers(len(seen))] if there else absent[rng.integers(len(absent))]
    static.append((f"is there a {asked.colour} {asked.form}", "yes" if there else "no"))
    yield static[rng.integers(len(static))]


def wrong_options(rng: np.random.Generator, event: Event, scene: Scene, split: str) -> list[str]:
    """Return four wrong sentences: the reverse action, both actions by another actor, and something else.

    Two actors and two actions occur twice each, so the sentences alone do not tell the right one.
    """
    shown = [who for who, pose in scene.poses_at(event.start).items() if pose.opacity]
    everyone = [Character(colour, form) for colour in COLOURS for form in FORMS]
    rest = [everyone[n] for n in rng.permutation(len(everyone)) if everyone[n] not in (event.actor, event.partner)]
    able = [who for who in sorted(rest, key=shown.__contains__) if event.action in actions_of(who, split)]
    other, back = able[-1], reverse(event.action)
    left_out = (event.action, back, "meet", "leave")
    absent = [who for who in rest if who != other and who not in shown]
    third = [(who, action) for who in absent for action in actions_of(who, split) if action not in left_out]
    return [
        sentence(event.actor, back, event.partner),
        sentence(other, event.action, event.partner),
        sentence(other, back, event.partner),
        sentence(*third[rng.integers(len(third))], None),
    ]


def quadrant(pose: Pose) -> str:
    """Return the quarter of the picture where a shape's centre is, such as 'top left'."""
    return f"{'top' if pose.y < 0.5 else 'bottom'} {'left' if pose.x < 0.5 else 'right'}"


def png(picture: np.ndarray) -> bytes:
    """Return a picture, uint8 `[H, W, 3]`, as a PNG."""
    height, width = picture.shape[:2]
    lines = np.pad(picture.reshape(height, -1), ((0, 0), (1, 0))).tobytes()  # each line begins with filter type 0
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    made = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def _named(poses: Mapping[Character, Pose]) -> list[tuple[str, Pose]]:
    return [(name(who), pose) for who, pose in poses.items()]
