#!/usr/bin/env bash
# MIL-NCE on the synthetic world, K = 4 and K = 1, one run per seed: bash examples/milnce_synthetic.sh [SEED ...]
# Seeds 1 2 3 (the default) take about an hour on two cores. The same command again resumes.
set -euo pipefail
cd "$(dirname "$0")/.."

. launch/environment.sh
. examples/synthetic_data.sh
make_environment "cpu,data,video,figures"

python=.venv/bin/python
[ $# -gt 0 ] || set -- 1 2 3

echo "== the synthetic world: videos, narration, queries, shards"
prepare_synthetic runs/data/synthetic 600 60
cat runs/data/synthetic/world/test/ceilings.json
workdirs=()
for seed in "$@"; do
    for candidates in 4 1; do
        workdir=runs/synthetic/K=$candidates-$seed
        workdirs+=("$workdir")
        echo "== training with K = $candidates, seed $seed"
        $python launch/train.py --config configs/milnce_synthetic.py --workdir "$workdir" \
            --config.seed="$seed" --config.clips.num_candidates=$candidates
        $python launch/evaluate.py --config configs/milnce_synthetic.py --workdir "$workdir"
    done
done
echo "== mean, standard deviation and range over seeds"
$python launch/figures.py seeds --workdirs "${workdirs[@]}" --evaluators synthetic synthetic_shuffled synthetic_reversed \
    --metrics R@1 R@5 R@10 median_rank
