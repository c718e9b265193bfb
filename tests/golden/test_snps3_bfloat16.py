"""The option bfloat16 beside the reference's numbers: losses of a pre-training step within 2 %."""

from pathlib import Path

import numpy as np
import pytest
from cases import Case
from check_snps3_model import pretraining_batch, run


@pytest.mark.slow
def test_losses_of_pre_training_are_within_two_percent():
    case = Case(Path(__file__).parent / "snps3" / "pretrain_step.json")
    batch = pretraining_batch(case, "float32")
    total, reports, _, _ = run(case, "pretraining", batch, case.config["n_clips"], "float32", dtype="bfloat16")
    stored = case.group("loss/")
    assert len(stored) == 7
    for name, value in (reports | {"total": total}).items():
        if name in stored:
            np.testing.assert_allclose(value, stored[name], rtol=0.02, err_msg=name)
