#!/bin/bash
#SBATCH --job-name=lulc-train --nodes=1 --ntasks=1 --output=%x-%j.out --open-mode=append
#SBATCH --requeue --signal=B:USR1@120
# Stacks to weights, on all GPUs that the job has on one node, by one process:
#   jobs/submit train-node stacks --out runs/own --batch-size 32
set -euo pipefail
# shellcheck source=jobs/until_done.sh
source "${LULC_JOBS:-$SLURM_SUBMIT_DIR/jobs}/until_done.sh"

export KERAS_BACKEND=$FRAMEWORK
until_done lulc-train-model --devices all "$@"
