#!/usr/bin/env bash
# Labels that depend on what was seen long before: a detector without a bank, and models with one, on long-memory films.
# bash examples/long_memory.sh [SEED ...]. Seeds 1 2 3 (the default) take about three quarters of an hour on
# two cores. The same command again resumes.
set -euo pipefail
cd "$(dirname "$0")/.."

. launch/environment.sh
make_environment "cpu,data,video,figures"

python=.venv/bin/python
data=runs/data/long_memory runs=runs/long_memory
[ $# -gt 0 ] || set -- 1 2 3

echo "== films of 40 to 52 seconds, and records of their keyframes"
$python -m data_prep.synthetic --long_memory --output $data/films --train 160 --val 60 --test 60 --seconds 40 --workers 2
for split in train val test; do
    $python -m data_prep.lfb keyframes --output $data --split $split --videos $data/films/$split/videos --whole_films \
        --annotations $data/films/$split/boxes.csv --labels $data/films/actions.pbtxt \
        --proposals $data/films/$split/proposals.pkl --fps 10 --interval 5 --jitter 2 --num_shards 4 --workers 2
done

for seed in "$@"; do
    echo "== seed $seed: the baseline, and its banks"
    baseline=$runs/baseline-$seed
    banks=$baseline/results
    $python launch/train.py --config configs/lfb_synthetic.py --workdir "$baseline" --config.seed="$seed"
    $python launch/evaluate.py --workdir "$baseline" --evaluator bank_train --evaluator bank_val --evaluator bank_test
    for operator in nl max; do
        echo "== seed $seed: $operator over the bank"
        $python launch/train.py --config configs/lfb_synthetic.py:$operator --workdir "$runs/$operator-$seed" \
            --config.seed="$seed" --config.init_from="('$baseline',)" \
            --config.bank.folders="('$banks/bank_train', '$banks/bank_val', '$banks/bank_test')"
    done
    for name in baseline nl max; do
        $python launch/evaluate.py --workdir "$runs/$name-$seed" --evaluator val --evaluator test
    done
done

echo "== mean, standard deviation and range over seeds, in percent"
$python launch/figures.py seeds --workdirs $runs/*-[0-9]* --evaluators val test \
    --metrics mAP "AP/12 after a white star" "AP/13 after a pink star" "AP/14 after a cyan star"
$python launch/predict.py --checkpoint "$runs/nl-$1" --video $data/films/test/videos/test_00002.mp4 \
    --boxes $data/films/test/boxes.csv --figure $runs/long_memory.png > /dev/null
echo "$runs/long_memory.png: people and actions of a test film, whose cue was a star"
