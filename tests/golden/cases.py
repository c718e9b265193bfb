"""Golden cases on disk: `SYSTEM/CASE.json` describes a case, `SYSTEM/CASE.npz` holds its arrays."""

import json
import re
from pathlib import Path

import numpy as np
import recipe


class Case:
    """Golden case."""

    def __init__(self, path):
        self.path = Path(path)
        self.manifest = json.loads(self.path.read_text())
        arrays = self.path.with_suffix(".npz")
        self.arrays = dict(np.load(arrays, allow_pickle=False)) if arrays.exists() else {}
        for name, made in self.manifest.get("generated_inputs", {}).items():
            arguments = {key: value for key, value in made.items() if key != "call"}
            self.arrays[name] = getattr(recipe, made["call"].split(".")[-1])(**arguments)

    def __getitem__(self, name):
        return self.arrays[name]

    @property
    def config(self):
        return self.manifest["config"]

    @property
    def tolerance(self):
        return self.manifest["tolerance"]

    def group(self, prefix):
        """Return the arrays under a prefix, by the rest of their names."""
        return {name[len(prefix) :]: value for name, value in self.arrays.items() if name.startswith(prefix)}

    def weights(self):
        """Return the case's checkpoint: regenerated weights, with the running statistics that the case supplies."""
        source = {}
        for entry in self.manifest["params"]:
            shape = tuple(entry["shape"])
            made = recipe.weight(entry["name"], tuple(entry.get("recipe_shape", shape)), self.manifest["salt"])
            source[entry["name"]] = made.reshape(shape) * np.asarray(entry.get("scale", 1), made.dtype)
        return source | self.group("in/state/")

    def sliced(self, name, array):
        """Return the part of a `[B, C, T, H, W]` array that the case stores."""
        every = re.match(r"\[:, ::(\d+)\]", self.manifest["slices"][name])
        flat = array.reshape(array.shape[0], array.shape[1], *array.shape[2:])
        return flat[:, :: int(every.group(1))]


def relative_error(ours, reference):
    """Return max|ours - reference| / max|reference|, without the division where the reference is 0."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"shape {ours.shape}, expected {reference.shape}"
    scale = np.abs(reference).max(initial=0.0)
    error = np.abs(ours - reference).max(initial=0.0)
    return error if scale == 0 else error / scale


def find(folder):
    """Return the sorted paths of all cases under a folder."""
    return sorted(Path(folder).glob("*/*.json"))


def checker_for(checkers, name):
    """Return the checker of a case's name, or else of the longest name that it begins with; None if there is none."""
    known = [known for known in checkers if name == known or name.startswith(known + "_")]
    return checkers[max(known, key=len)] if known else None
