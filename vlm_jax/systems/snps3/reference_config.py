"""Configuration files of the reference: yml files that include others, shell scripts, and pairs of a command line.

Source: alipay/Ant-Multi-Modal-Framework, antmmf/common/configuration.py and defaults/configs/base.yml. The command line
comes before a script, a script before a file, and a file before those that it includes. `reference_keys.py` turns the
result into keys of ours.
"""

import ast
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vlm_jax.errors import ConfigError

DEFAULTS = """
trainer: base_trainer
experiment_name: run
max_iterations: .inf
max_epochs: null
log_interval: 100
snapshot_interval: 1000
max_ckpt_num: null
clip_gradients: false
clip_norm_mode: all
device: cuda
seed: null
batch_size: 512
num_workers: 4
sampler: {type: random_sampler, params: {}}
distributed_sampler: {type: distributed_sampler, split_eval: false, params: {}}
should_early_stop: false
patience: 30000
monitored_metric: total_loss
metric_minimize: true
lr_scheduler: false
lr_steps: []
lr_epochs: []
lr_ratio: 0.1
use_warmup: false
warmup_factor: 0.2
warmup_iterations: 1000
run_type: train+inference
logger_level: info
distributed: false
local_rank: null
static_graph: false
data_parallel: false
evalai_inference: false
evalai_inference_file: null
evalai_max_predictions_per_file: .inf
report_format: json
pretrained_mapping: {}
load_pretrained: false
save_dir: ./save
log_dir: ./logs
should_not_log: false
verbose_dump: false
resume: false
resume_file: null
restart: false
pin_memory: false
task_size_proportional_sampling: true
synchronized_loss: false
sync_bn: false
enable_amp: false
gradient_accumulation_steps: 1
find_unused_parameters: true
disable_tqdm: false
replace_speedup_op: false
num_nodes: 1
num_gpus_per_node: 0
"""
"""Values of `training_parameters` that no file gives, by key. Only keys that exist can be set on a command line."""

Tree = dict[str, Any]


class Script(NamedTuple):
    """Content of a shell script that starts the reference.

    Attributes:
      file: Path of its yml file.
      pairs: Keys and values that it sets, in order.
      processes: Number of processes, one per GPU; 0 if it does not say.
    """

    file: Path
    pairs: list[tuple[str, str]]
    processes: int


def merge(path: Path, pairs: Sequence[tuple[str, str]] = (), environment: Mapping[str, str] = os.environ) -> Tree:
    """Return the configuration of a file with the defaults, after the pairs of a script and a command line.

    Args:
      path: yml file.
      pairs: Dotted keys and values in order; the last one of a key counts.
      environment: Variables that replace `$NAME` and `${NAME}` in files; unknown ones stay.

    Raises:
      ConfigError: For a file that cannot be read, or a key that does not exist.
    """
    empty: Tree = {"model_attributes": {}, "task_attributes": {}, "optimizer_attributes": {}}
    tree = _update({"training_parameters": yaml.safe_load(DEFAULTS), **empty}, _load(path, environment, ()))
    for key, value in pairs:
        _set(tree, key, value)
    return tree


def read_script(path: Path, environment: Mapping[str, str] = os.environ) -> Script:
    """Return what a shell script passes to the reference's run.py.

    Raises:
      ConfigError: If the script cannot be read, or starts no run.py with `--config`.
    """
    variables = dict(environment)
    for line in _text(path).replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ConfigError(f"{path}: cannot be read as a shell script ({error})") from None
        words = [_expanded(word, variables) for word in words]
        words = words[words[:1] == ["export"] :]
        while words and (found := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0])):
            variables[found[1]] = found[2]
            words = words[1:]
        starts = [place for place, word in enumerate(words) if word.endswith("run.py")]
        if starts and "--config" in words[starts[0] : -1]:
            return _script(path, words[: starts[0]], words[starts[0] + 1 :])
    raise ConfigError(f"{path}: expected a line that starts run.py with --config")


def parse_pairs(words: Sequence[str], place: str = "the command line") -> list[tuple[str, str]]:
    """Return words in pairs of key and value.

    Raises:
      ConfigError: If a value is missing, or a key looks like an option.
    """
    if len(words) % 2:
        raise ConfigError(f"{place}: {words[-1]!r} has no value; expected pairs KEY VALUE")
    pairs = list(zip(words[::2], words[1::2], strict=True))
    if wrong := [key for key, _ in pairs if key.startswith("-")]:
        raise ConfigError(f"{place}: {wrong[0]!r} is no key of the reference, such as optimizer_attributes.params.lr")
    return pairs


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a tree by dotted key. Empty sections have no keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _script(path: Path, before: Sequence[str], after: Sequence[str]) -> Script:
    number = next((word.partition("=")[2] for word in before if word.startswith("--nproc_per_node=")), "0")
    if not number.isdigit():
        raise ConfigError(f"{path}: --nproc_per_node: expected a number, found {number!r}")
    place = list(after).index("--config")
    pairs = parse_pairs([*after[:place], *after[place + 2 :]], str(path))
    return Script(_beside(path, after[place + 1]), pairs, int(number))


def _beside(script: Path, config: str) -> Path:
    """Return the path of a config that a script names from the root of the reference's repository."""
    found = (folder / config for folder in script.absolute().parents)
    return next((path for path in found if path.is_file()), Path(config))


def _load(path: Path, environment: Mapping[str, str], above: tuple[Path, ...]) -> Tree:
    """Return the content of a file over that of the files that it includes, later ones over earlier ones."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: includes itself")
    text = _expanded(_text(path), environment)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: expected yml ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections such as training_parameters, found {type(content).__name__}")
    includes = content.pop("includes", None) or []
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise ConfigError(f"{path}: includes: expected a list of files")
    merged: Tree = {}
    for name in includes:
        _update(merged, _load(path.parent / name, environment, (*above, path.resolve())))
    return _update(merged, content)


def _update(tree: Tree, update: Mapping[str, Any]) -> Tree:
    """Merge sections into a tree, deeply; lists and values are replaced."""
    for key, value in update.items():
        key = str(key)
        if isinstance(value, Mapping):
            below = tree.get(key)
            tree[key] = _update(below if isinstance(below, dict) else {}, value)
        else:
            tree[key] = _parsed(value)
    return tree


def _set(tree: Tree, key: str, value: str) -> None:
    """Set an existing value, also one in a list, as in 'transforms.[0].params.max_size'."""
    fields = [field for part in key.split(".") for field in re.findall(r"\[\d+\]|[^\[\]]+", part)]
    node: Any = tree
    for place, field in enumerate(fields):
        index: Any = int(field[1:-1]) if isinstance(node, list) and field.startswith("[") else field
        known = isinstance(node, dict) and index in node
        known = known or (isinstance(node, list) and isinstance(index, int) and index < len(node))
        if not known:
            raise ConfigError(f"{key}: no such key in the configuration (at {field!r}); only existing keys can be set")
        if place == len(fields) - 1 and not isinstance(node[index], dict):
            node[index] = _parsed(value)
            return
        node = node[index]
    raise ConfigError(f"{key}: is a section, expected the key of a value")


def _parsed(value: Any) -> Any:
    """Return a value; a string is read as a Python literal if it is one, such as '5e-5', '1,2' or 'None'."""
    if isinstance(value, list):
        return [_update({}, each) if isinstance(each, Mapping) else _parsed(each) for each in value]
    if not isinstance(value, str):
        return value
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    return list(found) if isinstance(found, tuple) else found


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with the values of `$NAME` and `${NAME}`; unknown ones stay."""
    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda found: variables.get(found[1] or found[2], found[0]), text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected text in UTF-8 ({error})") from None
