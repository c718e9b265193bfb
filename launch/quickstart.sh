#!/usr/bin/env bash
# From real video files to a trained, evaluated model, on a laptop's CPU: bash launch/quickstart.sh
# Needs Python 3.11 or newer, pip, and on the first run a package index. Everything it makes is in .venv and runs/.
set -euo pipefail
cd "$(dirname "$0")/.."

. launch/environment.sh
make_environment "cpu,data,video,figures"

python=.venv/bin/python
clips=data_prep/clips
data=runs/data
run=runs/quickstart
config=configs/milnce_quickstart.py

echo "== 1/5 word list and TFRecord shards from the clips in $clips"
$python data_prep/milnce.py vocabulary --list $clips/videos.csv --captions $clips/captions \
    --output $data/clips/vocabulary.npy --rows 300
$python data_prep/milnce.py howto100m --list $clips/videos.csv --videos $clips --captions $clips/captions \
    --output $data/clips --num_shards 2 --workers 2 --short_side 80 --smallest_side 64 --segment_seconds 3 --epoch segments \
    --clip_seconds 1.6 --min_time 2 --min_seconds 1.6
$python data_prep/milnce.py segments --csv $clips/queries.csv --videos $clips \
    --output $data/queries --num_shards 2 --workers 2 --windows 2 --num_frames 8 --fps 5 --size 64

echo "== 2/5 training a small S3D with MIL-NCE"
$python launch/train.py --config $config --workdir $run

echo "== 3/5 evaluating the restored checkpoint in a new process"
$python launch/evaluate.py --config $config --workdir $run

echo "== 4/5 drawing"
$python launch/figures.py retrieval --results $run/results/clips_rankings.json --videos $clips \
    --output $run/figures/retrieval.png

echo "== 5/5 result"
$python launch/figures.py table --workdir $run --evaluator clips
echo "Results: $run/results/clips.json   Picture: $run/figures/retrieval.png"
