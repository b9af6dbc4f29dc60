#!/bin/bash
#SBATCH --job-name=lulc-classify-dask --output=%x-%j.out --open-mode=append
#SBATCH --requeue --signal=B:USR1@120
# Mosaic to map, its parts shared out among Dask workers, one for each task of the job:
#   jobs/submit --ntasks=16 classify-dask runs/own mosaic.tif map.tif
set -euo pipefail
jobs=${LULC_JOBS:-$SLURM_SUBMIT_DIR/jobs}
# shellcheck source=jobs/until_done.sh
source "$jobs/until_done.sh"
# shellcheck source=jobs/dask_workers.sh
source "$jobs/dask_workers.sh"

start_workers
until_done --overlap --nodes=1 --ntasks=1 lulc-make-classifications "$@" --dask "$address"
