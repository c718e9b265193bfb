"""Command `words` of SNP-S3: significant words of captions, in the reference's three steps, and lemma groups.

Source: alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp/auxiliary_files/generate_ss_word_json. The folder has

    counts.json           step 1: {part of speech: {word: count}}; a file such as counts_0010000.json
                          after every 10000 captions, from which the same command continues
    words.json, .csv      step 2: counts, ranks and shares of the vocabulary's tokens
    ranks.json, .csv      step 3: the same without small shares; `config.words.ranks`
    choices.json          step 3: tokens by kind and frequency, which nothing reads
    groups.json           words with the same lemma, by token; `config.words.groups`
"""

import argparse
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.commands import Commands
from data_prep.snps3 import taggers
from data_prep.snps3.texts import read_captions
from vlm_jax.errors import DataError
from vlm_jax.files import write_atomically, write_json
from vlm_jax.progress import Progress
from vlm_jax.systems.snps3 import significant_words
from vlm_jax.systems.snps3.significant_words import ABANDONED, COUNTED, Counts
from vlm_jax.text import vocabulary

SAVED_EVERY = 10000
"""Number of captions after which counts are saved."""


def mine_words(arguments: argparse.Namespace) -> None:
    """Write the files of all steps.

    Raises:
      DataError: For input that cannot be used.
    """
    if not 0 <= arguments.threshold <= 1:
        raise DataError(f"--threshold: expected 0 to 1, found {arguments.threshold}")
    output, tokenizer = arguments.output, vocabulary.load(arguments.vocabulary)
    output.mkdir(parents=True, exist_ok=True)
    counts = read_counts(arguments.counts) if arguments.counts else count_captions(arguments)
    tokens = range(tokenizer.vocabulary_size)
    words = [tokenizer.word_of(token) for token in tokens]
    table = significant_words.tabulate(
        counts, [tokenizer.piece(token) for token in tokens], ABANDONED[arguments.abandoned], words
    )
    significant_words.write(output / "words.json", table)
    reduced = significant_words.reduce(table, arguments.threshold)
    significant_words.write(output / "ranks.json", reduced)
    try:
        made = significant_words.choices(reduced, arguments.top)
        write_atomically(output / "choices.json", json.dumps(made).encode())
    except DataError as error:
        print(f"{output / 'choices.json'} is left out, which training does not need: {error}")
    groups = significant_words.lemma_groups(words, taggers.make_lemmatizer(arguments.tagger))
    significant_words.write_groups(output / "groups.json", groups)
    counted = int((table.total > 0).sum())
    print(
        f"{output}: {counted} of {len(words)} tokens are counted words, {int((table.rank <= arguments.top).sum())} of "
        f"rank {arguments.top} or less, {sum(map(bool, groups))} with other forms"
    )
    if table.rank.max() <= arguments.top:
        print(
            f"{output}: fewer than {arguments.top} words are counted, so all tokens would be significant; set "
            f"config.words.top to less than {counted}"
        )


def count_captions(arguments: argparse.Namespace) -> Counts:
    """Return the counts of all captions. Saved counts of an earlier run on the same captions are continued.

    Raises:
      DataError: For captions that cannot be used, or a folder that was begun with others.
    """
    output, tag = arguments.output, taggers.make_tagger(arguments.tagger)
    _check_begun(output / "settings.json", arguments)
    done, counts = _saved(output)
    captions = itertools.islice(read_captions(arguments.captions), done, None)
    with Progress("captions", None, start=done) as progress:
        for part in iter(lambda: list(itertools.islice(captions, SAVED_EVERY)), []):
            for kind, found in significant_words.count_words(_advancing(progress, map(tag, part))).items():
                for word, number in found.items():
                    counts[kind][word] = counts[kind].get(word, 0) + number
            done += len(part)
            if len(part) == SAVED_EVERY:
                _write_counts(output / f"counts_{done:07d}.json", counts)
    _write_counts(output / "counts.json", counts)
    return counts


def read_counts(path: Path) -> Counts:
    """Return counts of the reference or of an earlier run.

    Raises:
      DataError: If the file has none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        counts = {kind: {str(word): int(number) for word, number in found[kind].items()} for kind in COUNTED}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected JSON with counts of words by {', '.join(COUNTED)} ({error})") from None
    return counts


def _saved(output: Path) -> tuple[int, Counts]:
    """Return the number of captions of the newest saved counts, and these counts."""
    names = [re.fullmatch(r"counts_(\d+)\.json", path.name) for path in output.iterdir()]
    done = max((int(name[1]) for name in names if name), default=0)
    return done, read_counts(output / f"counts_{done:07d}.json") if done else {kind: {} for kind in COUNTED}


def _advancing(progress: Progress, tagged: Iterator[list[tuple[str, str]]]) -> Iterator[Sequence[tuple[str, str]]]:
    for words in tagged:
        progress.advance()
        yield words


def _check_begun(path: Path, arguments: argparse.Namespace) -> None:
    sizes = {}
    for captions in arguments.captions:
        if not captions.is_file():
            raise DataError(f"--captions: {captions}: no such file")
        sizes[str(captions.absolute())] = captions.stat().st_size
    settings = {"captions": sizes, "tagger": arguments.tagger}
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise DataError(f"{path}: begun with other captions or another tagger; use another --output")
    write_json(path, settings)


def _write_counts(path: Path, counts: Counts) -> None:
    write_atomically(path, json.dumps(counts).encode())


def add_commands(commands: Commands) -> None:
    """Add the command `words`."""
    parser = commands.add_parser("words", help="significant words of captions: counts, ranks and lemma groups")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--captions", nargs="+", type=Path, help="training captions, JSON lines")
    source.add_argument("--counts", type=Path, help="counts.json of an earlier run or of the reference, for step 2 on")
    parser.add_argument("--vocabulary", required=True, type=Path, help="vocab.txt or sentencepiece .model")
    parser.add_argument("--output", required=True, type=Path, help="folder of the files")
    parser.add_argument(
        "--tagger",
        default=taggers.default_tagger(),
        choices=taggers.TAGGERS,
        help="'spacy' as the reference, 'nltk', or 'rules', which needs no package (default here: %(default)s)",
    )
    parser.add_argument(
        "--abandoned",
        default="webvid",
        choices=tuple(ABANDONED),
        help="words that never count, as for WebVid or for COCO and Visual Genome (default: %(default)s)",
    )
    parser.add_argument("--threshold", type=float, default=0.25, help="smallest share kept (default: %(default)s)")
    parser.add_argument("--top", type=int, default=3000, help="largest significant rank (default: %(default)s)")
    parser.set_defaults(run=mine_words)
