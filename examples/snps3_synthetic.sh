#!/usr/bin/env bash
# SNP-S3 on the synthetic world: pre-training with significant words and without, then retrieval, questions and options.
# bash examples/snps3_synthetic.sh [SEED ...]. Seeds 1 2 3 (the default) take several hours on two cores. TRAIN and TEST
# set the numbers of videos. The same command again resumes.
set -euo pipefail
cd "$(dirname "$0")/.."

. launch/environment.sh
. examples/synthetic_data.sh
make_environment "cpu,data,video,figures"

python=.venv/bin/python config=configs/snps3_synthetic.py
data=runs/data/snps3_synthetic runs=runs/snps3_synthetic
world=$data/world
[ $# -gt 0 ] || set -- 1 2 3

echo "== the synthetic world, its words, and records of its parts"
$python -m data_prep.synthetic --output $world --train "${TRAIN:-300}" --test "${TEST:-20}" --workers 2
prepare_words $data $world/train/snps3/question_answering.jsonl $world/train/snps3/pretraining.jsonl
prepare_items $data/pretraining train $world/train/videos $world/train/snps3/pretraining.jsonl
for split in train validation test; do
    # Validation holds out some of the training videos.
    videos=$world/${split/validation/train}/videos texts=$world/$split/snps3 name=${split/validation/val}
    prepare_items $data/retrieval "$name" "$videos" "$texts/retrieval.jsonl"
    prepare_items $data/questions "$name" "$videos" "$texts/question_answering.jsonl" --use questions --answers $data/answers.json
    prepare_items $data/choices "$name" "$videos" "$texts/multiple_choice.jsonl" --use choices
done

# run VARIANT NAME OPTIONS...: train and evaluate the run of one seed.
run() {
    local variant=$1 workdir=$runs/$2-$seed
    shift 2
    echo "== $workdir"
    $python launch/train.py --config "$config$variant" --workdir "$workdir" --config.seed="$seed" "$@"
    $python launch/evaluate.py --workdir "$workdir" --evaluator val --evaluator test
}
for seed in "$@"; do
    for words in significant plain; do
        variant=${words/significant/}
        run "${variant:+:$variant}" $words
        for head in retrieval question_answering multiple_choice; do
            run ":$head" ${words}_$head --config.init_from="('$runs/$words-$seed',)"
        done
    done
    # The same questions without pre-training.
    for head in question_answering multiple_choice; do
        run ":$head" scratch_$head --config.init_from="()" --config.init_fresh="()"
    done
done

echo "== retrieval of parts by text (level 1, then level 2), zero-shot and fine-tuned: mean, deviation and range over seeds"
$python launch/figures.py seeds --workdirs $runs/{significant,plain}-* $runs/*_retrieval-* --evaluators val test --metrics \
    l1_simi_t2v-r@1 l2_simi_t2v-r@{1,5,10} l2_simi_t2v-mr chance/l2_simi_t2v-r@1
echo "== accuracy of answers and of choices"
$python launch/figures.py seeds --workdirs $runs/*_question_answering-* $runs/*_multiple_choice-* --evaluators val test \
    --metrics accuracy chance/accuracy
$python launch/figures.py retrieval --results "$runs/significant_retrieval-$1/results/test.jsonl" \
    --videos $world/test/videos --output $runs/retrieval.png
