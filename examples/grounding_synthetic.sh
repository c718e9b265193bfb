#!/usr/bin/env bash
# CTRL and GroundNLQ on the synthetic world, one run per seed: bash examples/grounding_synthetic.sh [SEED ...]
# Seeds 1 2 3 (the default) take about an hour and a half on two cores. The same command again resumes.
set -euo pipefail
cd "$(dirname "$0")/.."

. launch/environment.sh
. examples/synthetic_data.sh
make_environment "cpu,data,video,figures"

python=.venv/bin/python
data=runs/data/synthetic world=runs/data/synthetic/world
s3d=runs/synthetic/K=4-1
[ $# -gt 0 ] || set -- 1 2 3

echo "== the synthetic world, and an S3D trained on its narration for the features"
prepare_synthetic $data 600 60
$python launch/train.py --config configs/milnce_synthetic.py --workdir $s3d --config.seed=1 --config.clips.num_candidates=4

echo "== features of video and words"
prepare_features $data $s3d
# Four sets: all annotated moments; the first 240; the narration; and the query-blind control.
head -n 240 $world/train/moments.jsonl > $world/train/few.jsonl
for split in train test; do
    make_query_blind $world/$split
    prepare_sentences $data $s3d moments $split $world/$split/moments.jsonl
    prepare_sentences $data $s3d query_blind $split $world/$split/query_blind.jsonl
done
prepare_sentences $data $s3d few train $world/train/few.jsonl
prepare_sentences $data $s3d narration train $world/train/narration.jsonl

# run CONFIG[:VARIANT] NAME OPTIONS...: train and evaluate the run of one seed.
run() {
    local config=configs/$1 workdir=runs/grounding/$2-$seed
    shift 2
    echo "== $workdir"
    $python launch/train.py --config "$config" --workdir "$workdir" --config.seed="$seed" "$@"
    $python launch/evaluate.py --config "$config" --workdir "$workdir" --config.seed="$seed" "$@"
}
for seed in "$@"; do
    run ctrl_synthetic.py ctrl
    run ctrl_synthetic.py:query_blind ctrl-query_blind
    run groundnlq_synthetic.py groundnlq-scratch
    run groundnlq_synthetic.py:query_blind groundnlq-query_blind
    run groundnlq_synthetic.py:pretrain groundnlq-pretrained
    run groundnlq_synthetic.py:finetune groundnlq-finetuned \
        --config.init_from=runs/grounding/groundnlq-pretrained-$seed
done
echo "== mean, standard deviation and range over seeds"
$python launch/figures.py seeds --workdirs runs/grounding/ctrl*-[0-9]* --evaluators synthetic \
    --metrics R@1,IoU=0.3 R@1,IoU=0.5 R@5,IoU=0.5 mIoU
$python launch/figures.py seeds --workdirs runs/grounding/groundnlq*-[0-9]* --evaluators synthetic \
    --metrics R1@0.3 R1@0.5 R5@0.5 mIoU
