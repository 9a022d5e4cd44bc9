#!/bin/bash
# raykd on Slurm: Ray for the time of one job, the driver on its first node. `output` must be on a shared file system.
#
#   sbatch cluster/slurm.sh sweep jobs/digits_sweep.yaml output="$PWD/runs" ray.wait_s=300
#   sbatch --nodes=5 --export=ALL,TEACHER_NODES=2 cluster/slurm.sh distill JOB.yaml output=... ray.wait_s=300 \
#     'teachers.*.node_labels={pool: teachers}' 'student.node_labels={pool: students}'
#   scancel JOB
#
# From the folder whose .venv holds raykd (or VENV=...), with MLFLOW_TRACKING_URI, _USERNAME and _PASSWORD in the
# environment. TEACHER_NODES: this many of the last nodes are labelled pool=teachers, the others pool=students.
# Two minutes before the time is up raykd writes its checkpoints; the job is queued again and resumes from them.
#SBATCH --job-name=raykd
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=raykd-%j.log
set -euo pipefail
(($# >= 2)) || { echo "usage: sbatch $0 sweep|distill|teach JOB.yaml [key=value ...]" >&2; exit 2; }

export PATH="${VENV:-$SLURM_SUBMIT_DIR/.venv}/bin:$PATH"
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
# By default Ray lets a call whose answer a broken link has lost wait for 7 minutes.
export RAY_grpc_client_keepalive_time_ms=20000 RAY_grpc_client_keepalive_timeout_ms=20000
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))') # this job's own; srun hands it to the nodes
export RAY_AUTH_TOKEN

# Jobs can share a node, so each has its own ports and folder; Ray's processes take 10002 to 19999.
port=$((20000 + SLURM_JOB_ID % 4000 * 3))
address=$(python -c 'import ray; print(ray.util.get_node_ip_address())'):$port
temporary=/tmp/raykd-job-$SLURM_JOB_ID # not raykd-NUMBER, which is the user of that number's cache
common=(--temp-dir="$temporary" --num-cpus="$SLURM_CPUS_PER_TASK" --block)

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
first_teacher=$((${#nodes[@]} - ${TEACHER_NODES:-0}))
((first_teacher > 0)) || { echo "TEACHER_NODES=$TEACHER_NODES of ${#nodes[@]} nodes: no node is left" >&2; exit 2; }

started=()
# shellcheck disable=SC2317,SC2329 # called by trap
finish() {
  trap - EXIT
  kill -TERM "${started[@]}" 2> /dev/null || true
  wait
  rm -rf "$temporary"
}
trap finish EXIT

log=raykd-$SLURM_JOB_ID-nodes.log
ray start --head --node-ip-address="${address%:*}" --port="$port" --dashboard-host=127.0.0.1 \
  --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)) --dashboard-agent-listen-port=0 \
  --labels=pool=students "${common[@]}" >> "$log" 2>&1 &
started+=($!)
until ray health-check --address "$address" > /dev/null 2>&1; do
  kill -0 "${started[0]}" 2> /dev/null || { cat "$log" >&2; exit 1; }
  sleep 1
done
for ((i = 1; i < ${#nodes[@]}; i++)); do # one srun each, so that a lost node does not end the others
  pool=$( ((i < first_teacher)) && echo students || echo teachers)
  srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --nodelist="${nodes[i]}" \
    ray start --address="$address" --dashboard-agent-listen-port=0 --labels="pool=$pool" "${common[@]}" \
    >> "$log" 2>&1 &
  started+=($!)
done

# raykd runs in the background, because bash handles a signal only after a foreground command; `wait` ends on the signal.
driver='' stopped=''
trap 'told=yes stopped=yes; [ -z "$driver" ] || kill -TERM "$driver"' TERM
run() {
  if [ -n "$stopped" ]; then # by a signal that came before there was a driver
    status=143
    return
  fi
  RAY_ADDRESS=$address python -m raykd "$@" &
  driver=$!
  told=yes
  while [ -n "$told" ]; do
    told='' status=0
    wait "$driver" || status=$?
  done
}

if [ "$1" = sweep ] && [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
  run "$@" --resume
  ((status != 2)) || run "$@" # it was stopped before there was anything to resume
else
  run "$@"
fi
if ((status == 143)); then
  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T || true)
  finish
  # After `scancel` it is COMPLETING or gone, and must not begin again.
  [ "$state" != RUNNING ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
