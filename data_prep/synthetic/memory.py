"""Long-memory films: actions that only events long before can tell, beside actions that the present shows.

In the first seconds of a film, a large star may appear, move and vanish; it is the cue, and it is white, pink or cyan.
After a cut, the film goes on with shapes of other colours. From there to the end, all of them carry the label 'after a
COLOUR star'. Four consecutive films differ in nothing but the cue (none, white, pink, cyan), so that no later frame
tells the label.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.synthetic import drawing
from data_prep.synthetic.world import CUES, FORMS, SMALL, Character, Event, Pose, Scene, make_video, visible
from vlm_jax.video.write import write_video

SPLITS = ("train", "val", "test")
IMMEDIATE = {
    "rest": (),
    "move": ("right", "left", "up", "down", "meet", "leave"),
    "turn": ("clockwise", "counterclockwise"),
    "change size": ("grow", "shrink"),
    "fade": ("appear", "vanish"),
}
"""Actions that the present shows, each with the actions of the world that it stands for."""

AFTER = tuple(f"after a {colour} star" for colour in CUES)
"""Actions that only the cue tells."""

LABELS = (*IMMEDIATE, *FORMS, *(f"{colour} star" for colour in CUES), *AFTER)
"""All actions, numbered from 1."""

CUE_RADIUS = 0.26
"""Radius of the cue, which is larger than all other shapes, as a fraction of the picture's side."""

CUE_SECONDS = 8
"""Length of the scene with the cue. The cue is gone two seconds before its end."""

KINDS = (None, *CUES)


def make_film(number: int, split: str, seed: int, seconds: float) -> tuple[list[Scene], str | None]:
    """Return the scenes of a film that lasts at least `seconds`, and the colour of its cue, or None."""
    kind = KINDS[number % len(KINDS)]
    rng = np.random.default_rng((seed, len(SPLITS) + SPLITS.index(split), number // len(KINDS)))
    later = make_video(rng, "train", seconds - CUE_SECONDS)
    return [_first_scene(rng, kind, later), *(_delayed(scene, CUE_SECONDS) for scene in later)], kind


def labels(scenes: Sequence[Scene], kind: str | None) -> Iterator[tuple[object, ...]]:
    """Yield one row per whole second, visible character and label: second, x1, y1, x2, y2, action, character."""
    people: dict[Character, int] = {}
    of_action = {action: name for name, actions in IMMEDIATE.items() for action in actions}
    for second, _, character, pose, event in visible(scenes):
        names = [of_action[event.action] if event else "rest"]
        names.append(f"{character.colour} star" if character.colour in CUES else character.form)
        if kind and second >= CUE_SECONDS:
            names.append(f"after a {kind} star")
        edges = [round(edge, 4) for edge in drawing.box(character.form, pose)]
        number = people.setdefault(character, len(people))
        yield from ((second, *edges, LABELS.index(name) + 1, number) for name in names)


def make(
    number: int, *, split: str, seed: int, seconds: float, fps: int, size: int, output: str
) -> list[tuple[object, ...]]:
    """Make one film; return its rows of boxes.csv."""
    scenes, kind = make_film(number, split, seed, seconds)
    name = f"{split}_{number:05d}"
    path = Path(output) / split / "videos" / f"{name}.mp4"
    if not path.exists():
        write_video(path, drawing.frames(scenes, fps, size), fps, gop=fps)
    return [(name, *row) for row in labels(scenes, kind)]


def proposals(rows: Iterable[Sequence]) -> dict[str, np.ndarray]:
    """Return all boxes with score 1, float32 `[N, 5]`, by 'VIDEO,SECOND' as in AVA's files of proposals."""
    boxes: dict[str, dict[tuple[float, ...], None]] = {}
    for video, second, *edges, _, _ in rows:
        boxes.setdefault(f"{video},{second:04d}", {})[tuple(edges)] = None
    return {key: np.array([(*edges, 1.0) for edges in found], np.float32) for key, found in boxes.items()}


def _first_scene(rng: np.random.Generator, kind: str | None, later: Sequence[Scene]) -> Scene:
    """Return the scene with the cue in its upper half, and two characters of the film at rest below."""
    actors = list(later[0].poses)[:2]
    poses = {
        actor: Pose(x + float(rng.uniform(-0.05, 0.05)), 0.75, SMALL, float(rng.uniform(0, 6)), 1.0)
        for actor, x in zip(actors, (0.25, 0.75), strict=True)
    }
    left, right = (float(x) for x in (rng.uniform(0.2, 0.35), rng.uniform(0.65, 0.8)))
    start, end = (left, right) if rng.random() < 0.5 else (right, left)
    hidden = Pose(start, 0.32, CUE_RADIUS, float(rng.uniform(0, 6)), 0.0)
    background = int(rng.integers(1 << 31))
    events: tuple[Event, ...] = ()
    if kind:
        cue, shown = Character(kind, "star"), dataclasses.replace(hidden, opacity=1.0)
        moved = dataclasses.replace(shown, x=end)
        events = (
            Event(0.4, 1.6, cue, "appear", None, hidden, shown),
            Event(2.0, 4.2, cue, "right" if end > start else "left", None, shown, moved),
            Event(4.6, 6.0, cue, "vanish", None, moved, dataclasses.replace(moved, opacity=0.0)),
        )
        poses[cue] = hidden
    return Scene(0.0, CUE_SECONDS, poses, events, frozenset(), background)


def _delayed(scene: Scene, seconds: float) -> Scene:
    """Return a scene that begins later."""
    events = tuple(dataclasses.replace(e, start=e.start + seconds, end=e.end + seconds) for e in scene.events)
    return dataclasses.replace(scene, start=scene.start + seconds, end=scene.end + seconds, events=events)
