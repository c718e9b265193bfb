"""Checks of the golden case of snps3's mining of significant words."""

import numpy as np

from vlm_jax.systems.snps3 import significant_words


def compare(ours, reference, rtol):
    """Compare JSON values: exactly but for floats; the order of keys counts."""
    assert type(ours) is type(reference)
    if isinstance(ours, dict):
        assert list(ours) == list(reference)
        for key in ours:
            compare(ours[key], reference[key], rtol)
    elif isinstance(ours, list):
        assert len(ours) == len(reference)
        for one, other in zip(ours, reference, strict=True):
            compare(one, other, rtol)
    elif isinstance(ours, float):
        np.testing.assert_allclose(ours, reference, rtol=rtol)
    else:
        assert ours == reference


def check_significant_words(case, precision):
    """Compare the files of all three steps."""
    wanted, rtol = case.manifest, case.tolerance["floats_rtol"]
    counts = significant_words.count_words(wanted["corpus_token_pos"])
    compare(counts, wanted["stage1_counts"], rtol)
    assert wanted["abandon_list"] == list(significant_words.ABANDONED["webvid"])
    table = significant_words.tabulate(counts, wanted["vocabulary"], wanted["abandon_list"])
    reduced = significant_words.reduce(table, wanted["threshold"])
    for step, found in (("stage2", table), ("stage3", reduced)):
        compare(found.columns(), wanted[f"{step}_json"], rtol)
        assert significant_words.to_csv(found) == wanted[f"{step}_csv"]
    chosen = significant_words.choices(reduced, wanted["rank_top_k"], wanted["group_split_list"])
    compare(chosen, wanted["stage3_vtm_choice_json"], rtol)


CHECKERS = {"significant_words": check_significant_words}
