#!/bin/bash
#SBATCH --job-name=lulc-preprocess --nodes=1 --ntasks=1 --output=%x-%j.out --open-mode=append
#SBATCH --requeue --signal=B:USR1@120
# Rasters to stacks:  jobs/submit preprocess --bands mosaic.tif --labels labels.tif --scheme clc-level2 --out stacks
set -euo pipefail
# shellcheck source=jobs/until_done.sh
source "${LULC_JOBS:-$SLURM_SUBMIT_DIR/jobs}/until_done.sh"

until_done lulc-preprocess "$@"
