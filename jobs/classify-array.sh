#!/bin/bash
#SBATCH --job-name=lulc-classify-array --nodes=1 --ntasks=1 --output=%x-%A_%a.out --open-mode=append
#SBATCH --requeue --signal=B:USR1@120
# Parts of one map, shared out among the tasks of an array; jobs/submit lets classify.sh follow:
#   jobs/submit --array=1-16 classify-array runs/own mosaic.tif map.tif
set -euo pipefail
# shellcheck source=jobs/until_done.sh
source "${LULC_JOBS:-$SLURM_SUBMIT_DIR/jobs}/until_done.sh"

until_done lulc-make-classifications "$@" --share "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_MAX"
