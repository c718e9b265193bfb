"""Drawing of people and their actions: on frames, as a sheet of frames, and as a film (needs the extra `figures`)."""

import functools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm_jax.errors import DataError, missing_package
from vlm_jax.files import replacing
from vlm_jax.systems.lfb.people import Action, Detection
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

try:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont
except ImportError as error:
    raise missing_package(error) from None

COLOURS = (
    (86, 180, 233),
    (240, 150, 30),
    (60, 200, 120),
    (235, 120, 190),
    (245, 225, 70),
    (150, 140, 255),
    (255, 95, 75),
)
"""Colours of persons, which people with colour blindness can tell apart (after Okabe and Ito)."""

SHOWN = 4
"""Largest number of actions drawn per person."""

SMALLEST_SIDE = 256
"""Shorter side to which smaller films are enlarged, pixels, so that text can be read."""

LONGEST_GAP = 2
"""Longest time between two keyframes of one person, seconds."""

SMALLEST_IOU = 0.3
"""Smallest intersection over union of one person's boxes in two consecutive keyframes."""

# Time for which a box is shown before and after its keyframe, if it has no neighbour, seconds.
HOLD = 0.5
BACKING = (12, 14, 18, 190)
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
CELL_WIDTH, GAP = 640, 8


Place = tuple[int, int, int, int]
"""Rectangle in a frame: left, top, right, bottom, pixels."""


class Shown(NamedTuple):
    """Person to draw: number of the person, box as fractions of the frame, and actions, best first."""

    person: int
    box: tuple[float, float, float, float]
    actions: Sequence[Action]


def link_people(detections: Sequence[Detection]) -> list[int]:
    """Return the number of the person of every detection, from 0.

    From one keyframe to the next, the pairs of boxes with the largest intersection over union are the same person.
    """
    numbers = [-1] * len(detections)
    last: dict[int, int] = {}
    seconds: dict[int, list[int]] = {}
    for index, detection in enumerate(detections):
        seconds.setdefault(detection.second, []).append(index)
    count = 0
    for second in sorted(seconds):
        near = {person: at for person, at in last.items() if second - detections[at].second <= LONGEST_GAP}
        pairs = [
            (_iou(detections[index].box, detections[at].box), person, index)
            for person, at in near.items()
            for index in seconds[second]
        ]
        for overlap, person, index in sorted(pairs, key=lambda pair: -pair[0]):
            if overlap >= SMALLEST_IOU and numbers[index] < 0 and person in near:
                numbers[index] = person
                del near[person]
        for index in seconds[second]:
            if numbers[index] < 0:
                numbers[index], count = count, count + 1
            last[numbers[index]] = index
    return numbers


def people_at(detections: Sequence[Detection], numbers: Sequence[int], time: float) -> list[Shown]:
    """Return the people at a time of the film (seconds).

    Boxes move linearly from one keyframe to the next; actions are those of the nearest keyframe.

    Args:
      detections: Detections in the order of time.
      numbers: Their persons (`link_people`).
      time: Time from the film's beginning, seconds.
    """
    before: dict[int, Detection] = {}
    after: dict[int, Detection] = {}
    for detection, number in zip(detections, numbers, strict=True):
        if detection.second <= time:
            before[number] = detection
        else:
            after.setdefault(number, detection)
    latest = max((detection.second for detection in detections), default=0)
    shown = []
    for number in sorted(before.keys() | after.keys()):
        past, future = before.get(number), after.get(number)
        if past and future and future.second - past.second <= LONGEST_GAP:
            share = (time - past.second) / (future.second - past.second)
            corners = zip(past.box, future.box, strict=True)
            box = tuple((1 - share) * one + share * other for one, other in corners)
            shown.append(Shown(number, box, (past if share < 0.5 else future).actions))
        elif past and time - past.second < (1.0 if past.second == latest else HOLD):
            shown.append(Shown(number, past.box, past.actions))
        elif future and future.second - time <= HOLD:
            shown.append(Shown(number, future.box, future.actions))
    return shown


def draw_people(frame: np.ndarray, people: Sequence[Shown], sides: dict[int, int] | None = None) -> np.ndarray:
    """Return a frame uint8 `[H, W, 3]` with a box and the best actions of every person; no text leaves the frame.

    Args:
      frame: RGB frame.
      people: People to draw.
      sides: Place of each person's label in the frame before, which it keeps where possible; changed.
    """
    picture = Image.fromarray(frame)
    canvas = ImageDraw.Draw(picture)
    width, height = picture.size
    size, sides = text_size(width, height), {} if sides is None else sides
    boxes = [tuple(round(c * side) for c, side in zip(p.box, (width, height) * 2, strict=True)) for p in people]
    for person, (left, top, right, bottom) in zip(people, boxes, strict=True):
        edges = (max(0, left), max(0, top), min(width, right) - 1, min(height, bottom) - 1)
        if edges[0] < edges[2] and edges[1] < edges[3]:
            colour = COLOURS[person.person % len(COLOURS)]
            canvas.rectangle(edges, outline=colour, width=max(2, round(size / 6)))
    taken: list[Place] = []
    for person, box in zip(people, boxes, strict=True):
        if person.actions:
            actions = tuple((action.name, f"{action.score:.2f}") for action in person.actions[:SHOWN])
            label = _label(actions, COLOURS[person.person % len(COLOURS)], size, width)
            places = _places_beside(label.size, box, picture.size)
            costs = [_cost(place, boxes, taken) + 0.05 * number for number, place in enumerate(places)]
            if person.person in sides:
                costs[sides[person.person]] -= 0.2
            best = sides[person.person] = int(np.argmin(costs))
            taken.append(places[best])
            picture.paste(label, places[best][:2], label)
    return np.asarray(picture)


def text_size(width: int, height: int) -> int:
    """Return the height of letters that can be read in a frame of this size, pixels."""
    return max(12, round(0.036 * min(width, height)))


@functools.lru_cache(maxsize=256)
def _label(actions: tuple[tuple[str, str], ...], colour: tuple[int, int, int], size: int, widest: int) -> Image.Image:
    """Return a dark, translucent panel with one action and its score per line, at most `widest` pixels wide."""
    font, margin, bar = ImageFont.truetype(FONT, size), max(2, size // 3), max(3, size // 4)
    scores = [score for _, score in actions]
    column = max(round(font.getlength(score)) for score in scores)
    room = widest - column - 4 * margin - bar
    # AVA's names have examples: "talk to (e.g., self, a person, a group)".
    names = [_shortened(name.partition(" (e.g.")[0], font, room) for name, _ in actions]
    wide = max(round(font.getlength(name)) for name in names)
    step = round(1.3 * size)
    panel = Image.new("RGBA", (min(widest, bar + wide + column + 4 * margin), step * len(names) + margin), BACKING)
    canvas = ImageDraw.Draw(panel)
    canvas.rectangle((0, 0, bar - 1, panel.height), fill=(*colour, 255))
    for number, (name, score) in enumerate(zip(names, scores, strict=True)):
        y = margin // 2 + step * (number + 0.5)
        canvas.text((bar + margin, y), name, "white", font, anchor="lm")
        canvas.text((panel.width - margin, y), score, colour, font, anchor="rm")
    return panel


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """Return a text cut to a width in pixels, with an ellipsis if it was cut."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}\u2026") > room:
        text = text[:-1].rstrip()
    return f"{text}\u2026"


def _places_beside(size: tuple[int, int], box: Place, frame: tuple[int, int]) -> list[Place]:
    """Return places for a label in the frame: above its box, beside it, below it, and inside at its foot and head."""
    (wide, high), (left, top, right, bottom), (width, height) = size, box, frame
    corners = [(left, top - high), (right, top), (left - wide, top), (left, bottom)]
    corners += [(left, bottom - high), (left, top)]
    corners = [(max(0, min(x, width - wide)), max(0, min(y, height - high))) for x, y in corners]
    return [(x, y, x + wide, y + high) for x, y in corners]


def _cost(place: Place, boxes: Sequence[Place], taken: Sequence[Place]) -> float:
    """Return how much a label covers, as a share of its area: other labels count most, then heads, then bodies."""
    heads = [(left, top, right, top + (bottom - top) // 3) for left, top, right, bottom in boxes]
    covered = 8 * sum(_shared(place, other) for other in taken)
    covered += sum(3 * _shared(place, head) for head in heads) + sum(_shared(place, box) for box in boxes)
    return covered / max(1, (place[2] - place[0]) * (place[3] - place[1]))


def _shared(one: Place, other: Place) -> int:
    """Return the area that two places have in common."""
    wide, high = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    return max(0, wide) * max(0, high)


def draw_film(path: str | Path, detections: Sequence[Detection], output: str | Path) -> None:
    """Write a film with the people and their actions, at the film's own size and average rate, without sound.

    Films with a shorter side below `SMALLEST_SIDE` are enlarged to it; odd sides are changed by one pixel.

    Raises:
      VideoError: If the film cannot be used.
    """
    info = decode.probe(path)
    rate = info.frame_rate or Fraction(25)
    small = min(info.width, info.height) < SMALLEST_SIDE
    filters = decode.short_side(SMALLEST_SIDE if small else decode.LARGE, enlarge=small)
    detections = sorted(detections, key=lambda detection: detection.second)
    numbers = link_people(detections)
    frames = decode.stream_frames(path, fps=rate, filters=filters)
    sides: dict[int, int] = {}
    drawn = (draw_people(f, people_at(detections, numbers, float(k / rate)), sides) for k, f in enumerate(frames))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_video(output, drawn, rate)


def draw_sheet(path: str | Path, detections: Sequence[Detection], output: str | Path, *, count: int = 6) -> None:
    """Write a picture of keyframes at even intervals, each with its time, people and actions, three per row.

    Args:
      path: Video file.
      detections: People.
      output: Picture to write, .png or .jpg.
      count: Largest number of keyframes.

    Raises:
      VideoError: If the film cannot be used.
      DataError: If there are no people.
    """
    if not detections:
        raise DataError(f"{output}: no people to draw")
    detections = sorted(detections, key=lambda detection: detection.second)
    numbers = link_people(detections)
    seconds = sorted({detection.second for detection in detections})
    chosen = [
        seconds[i] for i in np.unique(np.linspace(0, len(seconds) - 1, min(count, len(seconds))).round().astype(int))
    ]
    cells = []
    for second in chosen:
        frame = Image.fromarray(decode.read_clip(path, start=second, num_frames=1, fps=30)[0])
        frame = frame.resize(
            (CELL_WIDTH, max(1, round(CELL_WIDTH * frame.height / frame.width))), Image.Resampling.BICUBIC
        )
        cell = Image.fromarray(draw_people(np.asarray(frame), people_at(detections, numbers, second)))
        _draw_time(cell, second)
        cells.append(cell)
    columns, (wide, high) = min(3, len(cells)), cells[0].size
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (wide + GAP) - GAP, rows * (high + GAP) - GAP), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % columns * (wide + GAP), number // columns * (high + GAP)))
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as partial:
        sheet.save(partial, format="JPEG" if output.suffix.lower() in (".jpg", ".jpeg") else "PNG", quality=88)


def _draw_time(picture: Image.Image, second: int) -> None:
    """Draw a time in minutes and seconds in the lower right corner."""
    font, text = ImageFont.truetype(FONT, text_size(*picture.size)), f"{second // 60}:{second % 60:02d}"
    left, top, right, bottom = font.getbbox(text)
    panel = Image.new("RGBA", (right - left + 12, bottom - top + 10), BACKING)
    ImageDraw.Draw(panel).text((panel.width / 2, panel.height / 2), text, "white", font, anchor="mm")
    picture.paste(panel, (picture.width - panel.width, picture.height - panel.height), panel)


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / max(sum(areas) - shared, 1e-9)
