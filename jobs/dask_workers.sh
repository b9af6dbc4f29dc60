# Sourced by the jobs that share their work out with Dask: a scheduler and workers inside the job.
# shellcheck shell=bash

# start_workers: one for each task of the job; sets `address`, where their scheduler answers.
start_workers() {
    # On a disk that all nodes see, closed to others.
    folder=$PWD/.dask-$SLURM_JOB_ID
    rm -rf "$folder"
    mkdir -m 700 "$folder"
    trap 'rm -rf "$folder"' EXIT
    certify
    export DASK_LOGGING__DISTRIBUTED=warning
    # Dask gives its workers one thread otherwise, and has them return each array's memory to the system at once.
    export OMP_NUM_THREADS MALLOC_TRIM_THRESHOLD_=134217728 MALLOC_MMAP_THRESHOLD_=33554432
    # Their pages in HTTP are not encrypted.
    local common=(--protocol tls --scheduler-file "$folder/file")
    common+=(--no-dashboard --dashboard-address 127.0.0.1:0)
    local worker=(dask worker --nthreads 1 --memory-limit 0 --death-timeout 120)
    srun --overlap --nodes=1 --ntasks=1 "${START[@]}" dask scheduler --port 0 "${common[@]}" &
    local step=$!
    # One that dies doesn't take the others along. SLURM ends all of them with the job.
    srun --kill-on-bad-exit=0 --wait=0 "${START[@]}" "${worker[@]}" "${common[@]}" \
        --local-directory "${TMPDIR:-/tmp}" &
    local pattern='s/^ *"address": "\(tls:.*\)",$/\1/p'
    until address=$(sed -n "$pattern" "$folder/file" 2> /dev/null) && [[ $address ]]; do
        kill -0 "$step" || { echo "error: the scheduler of Dask has ended, see above" >&2; exit 1; }
        sleep 1
    done
}

# Whoever reaches a scheduler or a worker can run code as its owner: each shows a certificate of this job.
certify() {
    local asked=(-newkey rsa:2048 -nodes -days 365 -subj "/CN=lulc-$SLURM_JOB_ID" -keyout "$folder/key")
    openssl req -x509 "${asked[@]}" -out "$folder/certificate" 2> "$folder/log" ||
        { cat "$folder/log" >&2; exit 1; }
    export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
    export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$folder/certificate
    local role
    for role in SCHEDULER WORKER CLIENT; do
        export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$folder/certificate"
        export "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$folder/key"
    done
}
