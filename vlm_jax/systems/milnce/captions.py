"""Which captions and which seconds of a narrated video make a training example.

Source: antoine77340/MIL-NCE_HowTo100M, howto100m_loader.py.
"""

from collections.abc import Sequence


def first_candidate(start: Sequence[float], end: Sequence[float], caption: int, count: int) -> int:
    """First of the `count` captions nearest in time to one caption; may be negative.

    The bag grows by the neighbour that keeps it shorter, to the right where both are equal, until it holds `count`
    captions or touches an end of the list. Candidates are `first, first + 1, ...`, clamped to the list.

    Args:
      start: Start of every caption of the video, seconds, in time order.
      end: End of every caption.
      caption: Index of the caption that the clip is taken from.
      count: Size of the bag.
    """
    first = last = caption
    for size in range(1, count):
        if first == 0:
            return 0
        if last == len(start) - 1:
            return first - (count - size)
        if end[last] - start[first - 1] < end[last + 1] - start[first]:
            first -= 1
        else:
            last += 1
    return first


def candidates(start: Sequence[float], end: Sequence[float], caption: int, count: int) -> list[int]:
    """Indices of the `count` candidate captions; short lists repeat their first or last one."""
    first = first_candidate(start, end, caption, count)
    return [min(max(index, 0), len(start) - 1) for index in range(first, first + count)]


def clip_interval(start: float, end: float, min_time: float) -> tuple[int, int]:
    """Whole seconds around a caption, widened about its middle to at least `min_time` seconds."""
    if end - start < min_time:
        start = max(0, start - (min_time - (end - start)) / 2)
        end = start + min_time
    return int(start), int(end)


def seek_range(interval: tuple[int, int], clip_seconds: float) -> tuple[int, int]:
    """First and last whole second, both included, at which a clip of that length may begin."""
    start, end = interval
    return start, int(max(start, end - clip_seconds))
