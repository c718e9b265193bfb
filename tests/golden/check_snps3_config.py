"""Checkers of the golden cases of snps3: merging of configuration files."""

import tempfile
from pathlib import Path

import pytest

from vlm_jax.errors import ConfigError
from vlm_jax.systems.snps3 import reference_config


def check_config_merge(case, precision):
    """Merge the files of the case with each command line; a key that does not exist is an error."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in case.manifest["files"].items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        main = Path(folder, "c/main.yml")
        for wanted in case.manifest["results"]:
            pairs = reference_config.parse_pairs(wanted["command_line"])
            if wanted["error"]:
                with pytest.raises(ConfigError, match="only existing keys can be set"):
                    reference_config.merge(main, pairs)
                pairs = []
            found = reference_config.merge(main, pairs)
            assert found["model_attributes"] == wanted["model_attributes"]
            training = wanted["training_parameters"]
            assert {key: found["training_parameters"][key] for key in training} == training


CHECKERS = {"config_merge": check_config_merge}
