# Everything that differs between clusters, and nothing else: the account, what each job asks for, and how a
# command is started on a node. Sourced by jobs/submit and by the jobs themselves.
# The values are for Roihu at CSC. `sinfo --summarize` and `scontrol show partition NAME` tell others'.
# shellcheck shell=bash disable=SC2034

# Billed for the jobs; `csc-projects` lists yours.
ACCOUNT=project_2001234

# Options of sbatch for each job. What is typed before the name of a job wins:
#   jobs/submit --time=01:00:00 preprocess ...
declare -A RESOURCES=(
    [preprocess]="--partition=small --cpus-per-task=8 --mem=32G --time=12:00:00"
    [preprocess-dask]="--partition=small --ntasks=8 --cpus-per-task=4 --mem-per-cpu=4G --time=12:00:00"
    [train-gpu]="--partition=gpumedium --gres=gpu:gh200:1 --cpus-per-task=72 --time=24:00:00"
    [train-node]="--partition=gpumedium --gres=gpu:gh200:4 --cpus-per-task=288 --time=24:00:00"
    [train-nodes]="--partition=gpularge --nodes=4 --gres=gpu:gh200:4 --cpus-per-task=288 --time=24:00:00"
    [classify-array]="--partition=small --array=1-8 --cpus-per-task=8 --mem=8G --time=06:00:00"
    [classify]="--partition=small --cpus-per-task=8 --mem=8G --time=06:00:00"
    [classify-dask]="--partition=small --ntasks=8 --cpus-per-task=8 --mem-per-cpu=1G --time=06:00:00"
)

# A job that its time limit or a more urgent job stopped is queued again, at most so many times.
RESTARTS=20

# What trains on the GPUs of a node: tensorflow or jax. For GPUs beside ARM processors only JAX is built.
FRAMEWORK=jax

# What starts a command on a node: here the container that apptainer.def makes, one for each kind of processor
# (Roihu's GPU nodes have ARM processors, the others don't: run `make image` on a login node of each kind).
START=(apptainer exec --nv --bind /scratch --bind /projappl \
    "/projappl/$ACCOUNT/lulc-$(uname -m).sif")
# Or an environment that pip made, on top of a module of the machine:
#   module load python-data
#   source "/projappl/$ACCOUNT/lulc/bin/activate"
#   START=()
