#!/bin/bash
#SBATCH --job-name=lulc-preprocess-dask --output=%x-%j.out --open-mode=append
#SBATCH --requeue --signal=B:USR1@120
# Rasters to stacks, cut by Dask workers, one for each task of the job:
#   jobs/submit --ntasks=16 preprocess-dask --bands mosaic.tif --labels labels.tif --scheme clc-level2 --out stacks
set -euo pipefail
jobs=${LULC_JOBS:-$SLURM_SUBMIT_DIR/jobs}
# shellcheck source=jobs/until_done.sh
source "$jobs/until_done.sh"
# shellcheck source=jobs/dask_workers.sh
source "$jobs/dask_workers.sh"

start_workers
until_done --overlap --nodes=1 --ntasks=1 lulc-preprocess "$@" --dask "$address"
