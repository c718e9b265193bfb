"""Checks of the golden cases of snps3's tokeniser, masking and choice of words."""

import numpy as np

from vlm_jax.systems.snps3.masking import SignificantWords, choose_words, mask_significant, restore
from vlm_jax.text import tokenizer
from vlm_jax.text.masking import mask_tokens
from vlm_jax.text.word_pieces import WordPieces


class Recorded:
    """Generator that repeats the draws of the reference, and checks what is asked for."""

    def __init__(self, draws):
        self.draws = list(draws)

    def random(self):
        kind, value = self.draws.pop(0)
        assert kind == "uniform"
        return value

    def integers(self, high):
        kind, *bounds, value = self.draws.pop(0)
        assert (kind, bounds) in (("randint", [0, high - 1]), ("torch_randint", [high]))
        return value

    def choice(self, population, size, replace):
        kind, *asked, picks = self.draws.pop(0)
        assert (kind, asked, replace) == ("sample", [population, size], False)
        return np.array(picks, int)


def check_tokenizer(case, precision):
    """Compare pieces, ids, windows and padded inputs."""
    tokens, length = WordPieces(case.manifest["vocab"]), case.manifest["max_seq_length"]
    for each in case.manifest["cases"]:
        assert tokens.pieces(each["text"]) == each["tokens"]
        assert tokens.encode(each["text"]) == each["ids"]
    for each in case.manifest["encoded"]:
        ids = tokens.encode(each["text"])
        bounds = each["window_start_range"]
        random = Recorded([("randint", *bounds, each["window_start"])])
        whole, mask = tokenizer.frame(ids[tokenizer.window(len(ids), length, random)], length, tokens)
        assert (whole.tolist(), mask.tolist()) == (each["input_ids"], each["input_mask"])
        assert mask.sum() == each["source_len"]
        assert set(each["lm_label_ids"]) == {-1}
        assert set(each["segment_ids"]) == {0}


def check_mssm_masking(case, precision):
    """Compare ids, tokens and labels of both kinds of masking, draw by draw."""
    tokens = WordPieces(case.manifest["vocab"])
    groups = {int(token): group for token, group in case.manifest["lemma_groups"].items()}
    words = SignificantWords.from_ranks(case["in/rank"], case.manifest["words_top_k"], groups)
    assert words.ids.tolist() == case.manifest["important_ids"]
    probability = case.manifest["probability"]
    for each in case.manifest["cases"]:
        random = Recorded(each["draws"])
        ids = [tokens.id_of(token) for token in each["tokens_in"]]
        masked, labels = mask_significant(ids, words, random, tokens, probability, strict=True)
        assert (masked.tolist(), labels.tolist(), random.draws) == (each["ids_out"], each["labels"], [])
        assert [tokens.piece(token) for token in masked] == each["tokens_out"]
    for each in case.manifest["plain_mlm_cases"]:
        random = Recorded(each["draws"])
        ids = [tokens.id_of(token) for token in each["tokens_in"]]
        masked, labels = mask_tokens(ids, random, tokens, probability)
        assert ([tokens.piece(token) for token in masked], random.draws) == (each["tokens_out"], [])
        assert labels.tolist() == each["labels"]


def check_lvwm_word_choice(case, precision):
    """Compare restored captions and chosen positions, draw by draw."""
    words = SignificantWords.from_ranks(case["in/rank"], case.manifest["words_top_k"], {})
    for each in case.manifest["cases"]:
        random = Recorded(each["draws"])
        ids = restore(np.array(each["input_ids"]), np.array(each["lm_label_ids"]))
        assert ids.tolist() == each["restored_ids"]
        chosen = choose_words(ids, words, random, (0, 101, 102, 103), case.manifest["num_chosen_word"])
        assert (chosen.tolist(), random.draws) == (each["chosen_positions"], [])


CHECKERS = {
    "tokenizer": check_tokenizer,
    "mssm_masking": check_mssm_masking,
    "lvwm_word_choice": check_lvwm_word_choice,
}
