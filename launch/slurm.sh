#!/usr/bin/env bash
# Training and preparing data under SLURM. Submit from the top of the checkout:
#
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh train \
#       --config configs/milnce_howto100m.py --workdir runs/milnce
#   sbatch --array=0-127 launch/slurm.sh prepare howto100m --list videos.csv --videos VIDEOS --captions CAPTIONS \
#       --output data/howto100m --num_shards 4096 --shard_step 128 --workers 8
#   sbatch --dependency=afterok:JOB launch/slurm.sh finalize howto100m ...    # the same words as for `prepare`
#
# train      One process a GPU: as many tasks as GPUs on every node. They find one another through jax. A job that is
#            near its time limit saves; the same command resumes, on any number of nodes that divides the batch.
# prepare    Task I of the array makes shard I and, with --shard_step N, shards I + N, I + 2 N, ... (N tasks, 0 to N - 1).
#            Tasks that failed are submitted again by their numbers (--array=17,93): finished shards stay.
# finalize   Checks that all shards are there, names those that are not, and writes the metadata.
#
# PYTHON chooses the Python (default: .venv/bin/python, else python3), SYSTEM the package of data_prep that prepares
# (default: milnce). The lines below are defaults; options of sbatch come before them. Add your site's partition and
# account.
#
#SBATCH --job-name=vlm_jax
#SBATCH --output=slurm-%x-%A_%a.log
# A job that was ended by the system starts again in the same log.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
# Cores of a process: they decode video (config.data.workers, --workers).
#SBATCH --cpus-per-task=8
# Two minutes before the limit: training saves and stops.
#SBATCH --signal=TERM@120
set -euo pipefail

# SLURM runs a copy of this file, so it cannot say where the checkout is.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
system=${SYSTEM:-milnce}
verb=${1:-}
[ $# -gt 0 ] && shift

case "$verb" in
    train)
        # Since SLURM 22.05 srun does not take the number of cores from sbatch.
        exec srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$python" launch/train.py "$@"
        ;;
    prepare)
        if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
            echo "error: prepare: no SLURM_ARRAY_TASK_ID; submit with sbatch --array=0-N" >&2
            exit 1
        fi
        exec "$python" -m "data_prep.$system" "$@" --shard_index "$SLURM_ARRAY_TASK_ID"
        ;;
    finalize)
        exec "$python" -m "data_prep.$system" "$@" --finalize
        ;;
    *)
        echo "error: expected train, prepare or finalize, found '$verb'; the head of launch/slurm.sh shows how" >&2
        exit 1
        ;;
esac
