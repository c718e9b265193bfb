"""Simulation of the synthetic world: shapes that move, turn, grow, appear, vanish and meet, scene after scene.

Actions come in reversible pairs: the frames of one, played backwards, show the other. Colour, place and size alone
therefore never tell which it was. Every colour, form and action occurs in training. For each coloured form, two of the
six pairs of actions are reserved for testing.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

COLOURS = {
    "red": (225, 45, 45),
    "green": (50, 190, 70),
    "blue": (60, 90, 235),
    "yellow": (240, 215, 50),
}
CUES = {"white": (250, 250, 250), "pink": (245, 70, 200), "cyan": (60, 225, 235)}
"""Colours of cues (`memory.py`), which no character of the world has."""

PAINTS = {**COLOURS, **CUES}
"""Colours in which shapes are drawn, RGB."""

FORMS = ("triangle", "star", "cross")
ACTIONS = ("right", "left", "up", "down", "clockwise", "counterclockwise", "grow", "shrink", "appear", "vanish")
ACTIONS += ("meet", "leave")
"""Names of the actions. Numbers 2n and 2n + 1 form a reversible pair."""

PAIRS = len(ACTIONS) // 2
SMALL, LARGE = 0.09, 0.15
"""Radii of shapes, as fractions of the picture's side."""

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Character:
    """A coloured form, such as the red star."""

    colour: str
    form: str


@dataclasses.dataclass(frozen=True)
class Pose:
    """Position and appearance of a shape.

    Attributes:
      x: Centre from the left edge, as a fraction of the picture's side.
      y: Centre from the top edge, as a fraction of the picture's side.
      radius: Radius of the circle around the shape, as a fraction of the picture's side.
      angle: Rotation, radians, clockwise on the screen.
      opacity: Opacity in [0, 1].
    """

    x: float
    y: float
    radius: float
    angle: float
    opacity: float


@dataclasses.dataclass(frozen=True)
class Event:
    """One action of one character.

    Attributes:
      start: Start, seconds from the beginning of the video.
      end: End, seconds from the beginning of the video.
      actor: Character that acts.
      action: One of `ACTIONS`.
      partner: Second character of `meet` and `leave`, else None.
      before: Pose of the actor at the start.
      after: Pose of the actor at the end.
      friends: If true, actor and partner had met earlier in the video.
    """

    start: float
    end: float
    actor: Character
    action: str
    partner: Character | None
    before: Pose
    after: Pose
    friends: bool = False


@dataclasses.dataclass(frozen=True)
class Scene:
    """A stretch of video between two cuts.

    Attributes:
      start: Start, seconds from the beginning of the video.
      end: End, seconds from the beginning of the video.
      poses: Pose of every character when the scene begins, in drawing order.
      events: Events in time order, without overlap.
      returning: Characters that were seen in an earlier scene.
      background: Random seed of the background.
    """

    start: float
    end: float
    poses: dict[Character, Pose]
    events: tuple[Event, ...]
    returning: frozenset[Character]
    background: int

    def poses_at(self, time: float) -> dict[Character, Pose]:
        """Return the pose of every character at `time` (seconds of the video)."""
        poses = dict(self.poses)
        for event in self.events:
            share = np.clip((time - event.start) / (event.end - event.start), 0.0, 1.0)
            if share > 0:
                poses[event.actor] = _between(event.before, event.after, float(share))
        return poses

    def event_at(self, time: float) -> Event | None:
        """Return the event at `time` (seconds of the video), None between events."""
        return next((event for event in self.events if event.start <= time < event.end), None)


def reverse(action: str) -> str:
    """Return the action that looks like this one played backwards."""
    return ACTIONS[ACTIONS.index(action) ^ 1]


def actions_of(character: Character, split: str) -> tuple[str, ...]:
    """Return the actions of a character in a split. The splits share no combination of colour, form and action."""
    colour, form = list(COLOURS).index(character.colour), FORMS.index(character.form)
    kept = {(colour + 2 * form) % PAIRS, (colour + 2 * form + PAIRS // 2) % PAIRS}
    return tuple(action for number, action in enumerate(ACTIONS) if (number // 2 in kept) == (split == "test"))


def make_video(rng: np.random.Generator, split: str, seconds: float) -> list[Scene]:
    """Return the scenes of a video that lasts at least `seconds`. Characters return in later scenes."""
    everyone = [Character(colour, form) for colour in COLOURS for form in FORMS]
    chosen = rng.permutation(len(everyone))[: min(len(everyone), 4 + int(seconds // 15))]
    cast = [everyone[number] for number in chosen]
    scenes: list[Scene] = []
    seen: set[Character] = set()
    met: set[frozenset[Character]] = set()
    while not scenes or scenes[-1].end < seconds:
        start = scenes[-1].end if scenes else 0.0
        actors = [cast[number] for number in rng.permutation(len(cast))[: rng.integers(2, 4)]]
        poses = _places(rng, actors, split)
        events = tuple(_events(rng, dict(poses), split, start, met))
        if not events:
            continue
        end = events[-1].end + 0.4
        scenes.append(Scene(start, end, poses, events, frozenset(seen & set(actors)), int(rng.integers(1 << 31))))
        shown = {character for character, pose in poses.items() if pose.opacity}
        seen |= shown | {event.actor for event in events}
    return scenes


def events_of(scenes: Sequence[Scene]) -> list[Event]:
    """Return all events of a video in time order."""
    return [event for scene in scenes for event in scene.events]


def visible(scenes: Sequence[Scene]) -> Iterator[tuple[int, Scene, Character, Pose, Event | None]]:
    """Yield the second, scene, character, pose and current event of every visible character at every whole second."""
    for second in range(1, int(scenes[-1].end)):
        scene = next(scene for scene in scenes if scene.start <= second < scene.end)
        event = scene.event_at(second)
        for character, pose in scene.poses_at(second).items():
            if pose.opacity >= 0.1:
                yield second, scene, character, pose, event if event and event.actor == character else None


def _places(rng: np.random.Generator, actors: Sequence[Character], split: str) -> dict[Character, Pose]:
    """Return the poses at the beginning of a scene: all apart, or two side by side if one of them can leave."""
    while True:
        poses: dict[Character, Pose] = {}
        for actor in actors:
            able = actions_of(actor, split)
            radius = SMALL if rng.random() < 0.5 else LARGE
            x, y = rng.uniform(radius + 0.03, 0.97 - radius, 2)
            opacity = float(not ("appear" in able and rng.random() < 0.4))
            poses[actor] = Pose(float(x), float(y), radius, float(rng.uniform(0, 2 * math.pi)), opacity)
        first, second = actors[:2]
        if "leave" in actions_of(first, split) and rng.random() < 0.4:
            beside = _beside(rng, poses[first], poses[second])
            poses[first] = dataclasses.replace(beside, opacity=1.0)
            poses[second] = dataclasses.replace(poses[second], opacity=1.0)
            poses = {actor: poses[actor] for actor in actors}
            pairs = [(a, b) for i, a in enumerate(actors) for b in actors[:i] if {a, b} != {first, second}]
        else:
            pairs = [(a, b) for i, a in enumerate(actors) for b in actors[:i]]
        if _inside(poses[first]) and all(_distance(poses[a], poses[b]) > 0.06 for a, b in pairs):
            return poses


def _events(
    rng: np.random.Generator,
    poses: dict[Character, Pose],
    split: str,
    start: float,
    met: set[frozenset[Character]],
) -> Iterator[Event]:
    """Yield up to five events, each possible in the poses that the previous one left; update `poses` and `met`."""
    time = start + 0.4
    done: set[tuple[Character, int]] = set()
    for _ in range(rng.integers(2, 6)):
        options = [
            option for option in _options(rng, poses, split) if (option[0], ACTIONS.index(option[1]) // 2) not in done
        ]
        if not options:
            return
        kinds = sorted({ACTIONS.index(action) // 2 for _, action, _, _ in options})
        kind = kinds[rng.integers(len(kinds))]
        options = [option for option in options if ACTIONS.index(option[1]) // 2 == kind]
        actor, action, partner, after = options[rng.integers(len(options))]
        pair = frozenset((actor, partner))
        end = time + float(rng.uniform(1.8, 2.8))
        yield Event(time, end, actor, action, partner, poses[actor], after, partner is not None and pair in met)
        if partner is not None:
            met.add(pair)
        done.add((actor, kind))
        poses[actor] = after
        time = end + float(rng.uniform(0.3, 0.8))


def _options(
    rng: np.random.Generator, poses: dict[Character, Pose], split: str
) -> Iterator[tuple[Character, str, Character | None, Pose]]:
    """Yield everything that can happen next: actor, action, partner, and the actor's pose afterwards."""
    shown = [character for character, pose in poses.items() if pose.opacity]
    for actor, pose in poses.items():
        others = [other for other in shown if other != actor]
        company = [other for other in others if _distance(pose, poses[other]) < 0.04]
        for action in actions_of(actor, split):
            if not pose.opacity:
                if action == "appear":
                    yield actor, action, None, dataclasses.replace(pose, opacity=1.0)
            elif action in ("meet", "leave"):
                for partner in others:
                    if (partner in company) == (action == "leave"):
                        after = _beside(rng, pose, poses[partner]) if action == "meet" else _away(rng, pose)
                        rest = [poses[other] for other in others if other != partner]
                        near = _distance(after, poses[partner]) if action == "leave" else 1.0
                        moved = math.hypot(after.x - pose.x, after.y - pose.y)
                        if near > 0.2 and moved > 0.2 and _free(pose, after, rest):
                            yield actor, action, partner, after
            elif action in ("clockwise", "counterclockwise"):
                turn = math.radians(rng.uniform(200, 300)) * (1 if action == "clockwise" else -1)
                yield actor, action, None, dataclasses.replace(pose, angle=pose.angle + turn)
            elif not company:
                after = _moved(rng, pose, action)
                if after and _free(pose, after, [poses[other] for other in others]):
                    yield actor, action, None, after


def _moved(rng: np.random.Generator, pose: Pose, action: str) -> Pose | None:
    """Return the pose after an action without a partner, or None where it is impossible."""
    step = float(rng.uniform(0.3, 0.5))
    change = {
        "right": {"x": pose.x + step},
        "left": {"x": pose.x - step},
        "up": {"y": pose.y - step},
        "down": {"y": pose.y + step},
        "grow": {"radius": LARGE} if pose.radius == SMALL else None,
        "shrink": {"radius": SMALL} if pose.radius == LARGE else None,
        "vanish": {"opacity": 0.0},
    }.get(action)
    after = dataclasses.replace(pose, **change) if change else None
    return after if after and _inside(after) else None


def _beside(rng: np.random.Generator, pose: Pose, partner: Pose) -> Pose:
    angle, reach = rng.uniform(0, 2 * math.pi), pose.radius + partner.radius
    return dataclasses.replace(pose, x=partner.x + reach * math.cos(angle), y=partner.y + reach * math.sin(angle))


def _away(rng: np.random.Generator, pose: Pose) -> Pose:
    x, y = rng.uniform(pose.radius + 0.03, 0.97 - pose.radius, 2)
    return dataclasses.replace(pose, x=float(x), y=float(y))


def _inside(pose: Pose) -> bool:
    return all(pose.radius <= place <= 1 - pose.radius for place in (pose.x, pose.y))


def _free(before: Pose, after: Pose, others: Sequence[Pose]) -> bool:
    """Return true if a movement keeps clear of the others and ends inside the picture."""
    way = [_between(before, after, share) for share in np.linspace(0, 1, 9)]
    return _inside(after) and all(_distance(pose, other) > 0.05 for pose in way for other in others)


def _distance(one: Pose, other: Pose) -> float:
    """Return the gap between the circles around two shapes, as a fraction of the picture's side."""
    return math.hypot(one.x - other.x, one.y - other.y) - one.radius - other.radius


def _between(before: Pose, after: Pose, share: float) -> Pose:
    values = zip(dataclasses.astuple(before), dataclasses.astuple(after), strict=True)
    return Pose(*(float(b + (a - b) * share) for b, a in values))
