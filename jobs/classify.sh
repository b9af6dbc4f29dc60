#!/bin/bash
#SBATCH --job-name=lulc-classify --nodes=1 --ntasks=1 --output=%x-%j.out --open-mode=append
#SBATCH --requeue --signal=B:USR1@120
# Mosaic to map on one node; after classify-array, of whose parts it makes the map:
#   jobs/submit classify runs/own mosaic.tif map.tif
set -euo pipefail
# shellcheck source=jobs/until_done.sh
source "${LULC_JOBS:-$SLURM_SUBMIT_DIR/jobs}/until_done.sh"

until_done lulc-make-classifications "$@"
