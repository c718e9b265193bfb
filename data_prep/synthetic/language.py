"""Sentences and questions about the synthetic world."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.synthetic.world import ACTIONS, COLOURS, FORMS, Character, Event, Scene, events_of, reverse

PHRASES = {
    "right": ("slides to the right", "moves right", "goes over to the right side"),
    "left": ("slides to the left", "moves left", "goes over to the left side"),
    "up": ("slides up", "moves up", "goes higher"),
    "down": ("slides down", "moves down", "goes lower"),
    "clockwise": ("turns clockwise", "spins clockwise", "rotates clockwise"),
    "counterclockwise": ("turns counterclockwise", "spins counterclockwise", "rotates counterclockwise"),
    "grow": ("grows", "gets bigger", "becomes large"),
    "shrink": ("shrinks", "gets smaller", "becomes small"),
    "appear": ("appears", "comes out of nowhere", "shows up"),
    "vanish": ("vanishes", "fades away", "disappears"),
    "meet": ("meets", "comes to", "joins"),
    "leave": ("leaves", "moves away from", "parts from"),
}
"""Three wordings of each action. Queries and questions use the first, the narration any of them."""

OPENINGS = ("", "", "", "now ", "and ", "look ", "so ", "here ")
ASIDES = (
    "let us wait and see",
    "that was nice to watch",
    "i like this part",
    "what will happen next",
    "keep looking at the picture",
    "as i said before",
)
COUNTS = ("no", "one", "two", "three")


@dataclasses.dataclass(frozen=True)
class Question:
    """A multiple-choice question about a stretch of video.

    Attributes:
      start: Start of the stretch, seconds.
      end: End of the stretch, seconds.
      question: Text of the question.
      answer: The right option.
      options: Five options in random order, including the answer.
    """

    start: float
    end: float
    question: str
    answer: str
    options: tuple[str, ...]


def name(character: Character) -> str:
    """Return a character's name, such as 'the red star'."""
    return f"the {character.colour} {character.form}"


def describe(event: Event, form: int = 0) -> str:
    """Return a sentence that describes an event, in wording 0, 1 or 2."""
    return sentence(event.actor, event.action, event.partner, form)


def kinds(event: Event) -> tuple[str, str]:
    """Return two partial descriptions of an event: its actor alone, and all of it but the direction of time."""
    both = sorted((describe(event), sentence(event.actor, reverse(event.action), event.partner, 0)))
    return name(event.actor), " or ".join(both)


def narrate(rng: np.random.Generator, events: Sequence[Event], mistiming: float) -> list[tuple[float, float, str]]:
    """Return the narration in time order: start and end in seconds, and text.

    Every event is described, up to `mistiming` seconds too early or too late. About one event in ten is followed by a
    sentence that describes nothing.
    """
    told = []
    for event in events:
        shift = float(rng.uniform(-mistiming, mistiming))
        opening = OPENINGS[rng.integers(len(OPENINGS))]
        told.append((event.start + shift, event.end + shift, opening + describe(event, int(rng.integers(3)))))
        if rng.random() < 0.1:
            told.append((event.end + shift, event.end + shift + 1.5, ASIDES[rng.integers(len(ASIDES))]))
    return sorted((round(max(0.0, start), 2), round(max(1.0, end), 2), text) for start, end, text in told)


def moments(scenes: Sequence[Scene]) -> list[tuple[float, float, str]]:
    """Return the sentences that are true exactly once in a video: start and end in seconds, and text."""
    events = events_of(scenes)
    texts = [describe(event) for event in events]
    return [(event.start, event.end, text) for event, text in zip(events, texts, strict=True) if texts.count(text) == 1]


def questions(rng: np.random.Generator, scenes: Sequence[Scene]) -> Iterator[Question]:
    """Yield up to four questions about every scene: what happens first, who acts, what comes next, and how many."""
    for scene in scenes:
        made = [_what(rng, scene), _who(rng, scene), _after(rng, scene), _count(scene)]
        for question, answer, wrong in filter(None, made):
            wrong = [option for option in dict.fromkeys(wrong) if option != answer][:4]
            options = [answer, *wrong]
            order = rng.permutation(len(options))
            yield Question(scene.start, scene.end, question, answer, tuple(options[number] for number in order))


Made = tuple[str, str, Sequence[str]] | None
"""Question, answer and wrong options, or None where a scene has nothing of the kind to ask about."""


def _what(rng: np.random.Generator, scene: Scene) -> Made:
    first = {event.actor: event for event in reversed(scene.events)}
    event = list(first.values())[rng.integers(len(first))]
    others = [action for action in rng.permutation(ACTIONS) if action not in (event.action, reverse(event.action))]
    return (
        f"what does {name(event.actor)} do first",
        event.action,
        [reverse(event.action), *others],
    )


def _who(rng: np.random.Generator, scene: Scene) -> Made:
    """Return a question about who does something that no other character of the scene does."""
    for event in scene.events:
        doing = {other.actor for other in scene.events if other.action == event.action}
        there = [character for character in scene.poses if character != event.actor]
        if len(doing) == 1 and there and event.partner is None:
            others = [Character(colour, form) for colour in rng.permutation(list(COLOURS)) for form in FORMS]
            return f"who {PHRASES[event.action][0]}", name(event.actor), [name(other) for other in (*there, *others)]
    return None


def _after(rng: np.random.Generator, scene: Scene) -> Made:
    """Return a question about what follows an event whose description is unique in the scene."""
    texts = [describe(event) for event in scene.events]
    pairs = [
        number
        for number in range(len(texts) - 1)
        if texts.count(texts[number]) == 1 and scene.events[number + 1].partner is None
    ]
    if not pairs:
        return None
    number = pairs[rng.integers(len(pairs))]
    event = scene.events[number + 1]
    swapped = [character for character in scene.poses if character != event.actor]
    wrong = [sentence(event.actor, reverse(event.action), None, 0)]
    wrong += [sentence(other, event.action, None, 0) for other in swapped]
    wrong += [text for text in texts if text != texts[number]]
    others = [action for action in rng.permutation(ACTIONS[:10]) if action != event.action]
    wrong += [sentence(event.actor, action, None, 0) for action in others]
    return f"what happens right after {texts[number]}", describe(event), wrong


def _count(scene: Scene) -> Made:
    """Return a question about the number of shapes at the end, which depends on who appeared and who vanished."""
    shown = sum(pose.opacity > 0 for pose in scene.poses_at(scene.end).values())
    forms = [f"{count} shapes" for count in COUNTS] + [f"only {form}s" for form in FORMS]
    return "how many shapes are there in the end", f"{COUNTS[shown]} shapes", forms


def sentence(actor: Character, action: str, partner: Character | None, form: int = 0) -> str:
    """Return a sentence that describes an action, in wording 0, 1 or 2."""
    text = f"{name(actor)} {PHRASES[action][form]}"
    return f"{text} {name(partner)}" if partner else text
