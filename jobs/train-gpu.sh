#!/bin/bash
#SBATCH --job-name=lulc-train --nodes=1 --ntasks=1 --output=%x-%j.out --open-mode=append
#SBATCH --requeue --signal=B:USR1@120
# Stacks to weights, on one GPU:
#   jobs/submit train-gpu stacks --out runs/own
set -euo pipefail
# shellcheck source=jobs/until_done.sh
source "${LULC_JOBS:-$SLURM_SUBMIT_DIR/jobs}/until_done.sh"

export KERAS_BACKEND=$FRAMEWORK
until_done lulc-train-model "$@"
