"""Choice of captions and seconds of a narrated video for a training example.

Source: antoine77340/MIL-NCE_HowTo100M, howto100m_loader.py.
"""

from collections.abc import Sequence


def first_candidate(start: Sequence[float], end: Sequence[float], caption: int, count: int) -> int:
    """Return the index of the first of the `count` captions nearest in time to one caption; it may be negative.

    The bag grows by the neighbour that keeps it shorter, or by the right one if both are equal, until it holds `count`
    captions or reaches an end of the list. Candidates are `first, first + 1, ...`, clipped to the list.

    Args:
      start: Start of every caption of the video, ascending, seconds.
      end: End of every caption, seconds.
      caption: Index of the caption that the clip is taken from.
      count: Number of candidates, K.
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
    """Return the indices of the `count` candidate captions; short lists repeat their first or last caption."""
    first = first_candidate(start, end, caption, count)
    return [min(max(index, 0), len(start) - 1) for index in range(first, first + count)]


def clip_interval(start: float, end: float, min_time: float) -> tuple[int, int]:
    """Return start and end of a caption in whole seconds, widened about its middle to at least `min_time` seconds."""
    if end - start < min_time:
        start = max(0, start - (min_time - (end - start)) / 2)
        end = start + min_time
    return int(start), int(end)


def seek_range(interval: tuple[int, int], clip_seconds: float) -> tuple[int, int]:
    """Return the first and last whole second, inclusive, at which a clip of `clip_seconds` may begin."""
    start, end = interval
    return start, int(max(start, end - clip_seconds))
