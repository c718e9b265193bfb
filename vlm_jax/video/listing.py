"""Paths of the videos in a folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from vlm_jax.errors import DataError

ENDINGS = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
"""Endings of the files that count as videos if no list is given."""


def walk(folder: Path) -> list[str]:
    """Return the sorted paths of all videos below a folder, relative to it.

    Links to folders are followed; hidden files are skipped.
    """
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:  # a link to a folder that was visited
            folders.clear()
            continue
        seen.add(place)
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        found += [path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in ENDINGS]
    return sorted(found)


def videos_of(videos: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """Return paths of videos by name: all below a folder, or those of files and folders in a list.

    Args:
      videos: Folder, file, or list of both. Videos of a folder are named relative to it, others as they are given.

    Raises:
      DataError: If a folder has no videos, there are none at all, or two have the same name.
    """
    found: dict[str, Path] = {}
    for place in [videos] if isinstance(videos, str | Path) else videos:
        folder = Path(place)
        paths = {name: folder / name for name in walk(folder)} if folder.is_dir() else {str(place): folder}
        if not paths:
            raise DataError(f"{place}: no videos ({', '.join(sorted(ENDINGS))})")
        for name, path in paths.items():
            if found.setdefault(name, path) != path:
                raise DataError(f"{name}: two videos of this name, {found[name]} and {path}")
    if not found:
        raise DataError("videos: expected a folder or files, found none")
    return found
