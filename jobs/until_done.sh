# Sourced by the jobs: the settings of the site, and how a command goes on until its work is done.
# shellcheck shell=bash

LULC_JOBS=${LULC_JOBS:-$SLURM_SUBMIT_DIR/jobs}
# shellcheck source=jobs/site.sh
source "${LULC_SITE:-$LULC_JOBS/site.sh}"

# srun doesn't take this over from sbatch (since SLURM 22.05).
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}

# until_done [SRUN OPTION...] COMMAND...
# Run a command of the toolkit as a step of this job. Where it ends because the time of the job is nearly over
# (USR1, see --signal in the jobs) or because another job is given its place, the job is queued again and the
# command continues its work. A job that is cancelled, or fails for another reason, ends.
until_done() {
    local options=() step status told over=
    while [[ $1 == -* ]]; do options+=("$1"); shift; done
    # To the step alone: srun would answer a signal of its own by killing the command, before it has saved.
    trap 'told=yes over=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
    # SLURM has told the step itself; what is waited for below is that it saves its work.
    trap 'told=yes' TERM
    srun "${options[@]}" "${START[@]}" "$@" &
    step=$!
    # A signal interrupts wait.
    until told=; wait "$step"; status=$?; [[ -z $told ]]; do :; done
    if ((status != 0)) && { [[ -n $over ]] || preempted; }; then
        queue_again
    fi
    return "$status"
}

preempted() {
    scontrol show job "$SLURM_JOB_ID" | grep --quiet 'PreemptTime=[0-9]'
}

queue_again() {
    if ((${SLURM_RESTART_COUNT:-0} >= RESTARTS)); then
        echo "error: not queued again, since it was $RESTARTS times already (RESTARTS in jobs/site.sh)" >&2
        echo "The same submission continues the work." >&2
        return
    fi
    echo "queued again as job $SLURM_JOB_ID: the work continues when its turn comes" >&2
    scontrol requeue "$SLURM_JOB_ID"
}
