#!/bin/bash
#SBATCH --job-name=lulc-train --ntasks-per-node=1 --output=%x-%j.out --open-mode=append
#SBATCH --requeue --signal=B:USR1@120
# Stacks to weights, on all GPUs that the job has on several nodes, by one process on each:
#   jobs/submit --nodes=4 train-nodes stacks --out runs/own --batch-size 128
set -euo pipefail
# shellcheck source=jobs/until_done.sh
source "${LULC_JOBS:-$SLURM_SUBMIT_DIR/jobs}/until_done.sh"

# The only framework whose processes train together.
export KERAS_BACKEND=jax
until_done lulc-train-model --devices all --processes "$SLURM_NTASKS" "$@"
