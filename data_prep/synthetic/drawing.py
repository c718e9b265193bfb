"""Renderer of the synthetic world, frame by frame."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.synthetic.world import PAINTS, Pose, Scene


def frames(scenes: Sequence[Scene], fps: int, size: int) -> Iterator[np.ndarray]:
    """Yield the frames of a video, uint8 `[size, size, 3]`. Frame i shows the time i / fps seconds."""
    count = int(scenes[-1].end * fps)
    number = 0
    for scene in scenes:
        behind = _background(scene.background, size)
        while number < count and number / fps < scene.end:
            picture = behind.copy()
            for character, pose in scene.poses_at(number / fps).items():
                _draw(picture, character.form, PAINTS[character.colour], pose)
            yield np.clip(picture, 0, 255).astype(np.uint8)
            number += 1


def box(form: str, pose: Pose) -> tuple[float, float, float, float]:
    """Return the bounding box of a shape inside the picture: x1, y1, x2, y2 as fractions of its side."""
    angle = np.linspace(0, 2 * math.pi, 720)
    x, y = np.cos(angle), np.sin(angle)
    reach = pose.radius / _gauge(form, *_turned(x, y, pose.angle))
    x, y = pose.x + reach * x, pose.y + reach * y
    edges = np.clip([x.min(), y.min(), x.max(), y.max()], 0, 1)
    return tuple(float(edge) for edge in edges)


def _draw(picture: np.ndarray, form: str, colour: Sequence[int], pose: Pose) -> None:
    if not pose.opacity:
        return
    size, radius = len(picture), pose.radius * len(picture)
    left, top = (max(0, int(place * size - radius - 1)) for place in (pose.x, pose.y))
    right, bottom = (min(size, int(place * size + radius + 2)) for place in (pose.x, pose.y))
    x = np.arange(left, right)[None] + 0.5 - pose.x * size
    y = np.arange(top, bottom)[:, None] + 0.5 - pose.y * size
    # Smooth edges: opacity follows the distance from the outline, in pixels, along the ray from the centre.
    covered = np.clip(0.5 + radius - _gauge(form, *_turned(x, y, pose.angle)), 0, 1) * pose.opacity
    part = picture[top:bottom, left:right]
    part += covered[..., None] * (np.array(colour, np.float32) - part)


def _gauge(form: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the circumradius of the shape whose outline passes through each point (in the shape's own axes)."""
    if form == "cross":
        wide, narrow = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
        return np.maximum(wide, narrow / 0.3) * math.hypot(1, 0.3)
    points, inner = {"triangle": (3, 0.5), "star": (5, 0.42)}[form]
    # Between two corners the outline is straight; that of a star bends once, half-way.
    half = math.pi / points
    angle = abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    normal = math.atan2(1 - inner * math.cos(half), inner * math.sin(half))
    return np.hypot(x, y) * np.cos(angle - normal) / math.cos(normal)


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points in the shape's own axes. Positive angles turn the shape clockwise on the screen."""
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _background(seed: int, size: int) -> np.ndarray:
    """Return a dim gradient between two colours, with grain: float32 `[size, size, 3]`."""
    rng = np.random.default_rng(seed)
    one, other = rng.uniform(10, 110, (2, 3))
    direction = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.7, 0.7, size)
    slope = np.clip(0.5 + axis[None] * math.cos(direction) + axis[:, None] * math.sin(direction), 0, 1)[..., None]
    return (one + slope * (other - one) + rng.normal(0, 4, (size, size, 1))).astype(np.float32)
