#!/bin/bash
# Train on the GPUs of several hosts: sbatch docs/launch/slurm.sh [FLAGS OF train.py]
# srun starts one process per GPU; JAX reads from Slurm's variables how they find each other.
#SBATCH --job-name=vdm_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

# srun returns the largest status of all tasks, which hides a final one: it names the
# tasks that exit with another status than 0, with their statuses, on standard error.
statuses=$(mktemp)
srun --kill-on-bad-exit=1 \
  "${PYTHON:-.venv/bin/python}" -u train.py \
  --config="${CONFIG:-configs/vdm.py:ucf101}" \
  --workdir="${WORKDIR:-runs/ucf101}" \
  --config.data.path="${DATA-/data/tfds}" \
  --config.mesh.fsdp=16 \
  "$@" 2>&1 | tee -a /dev/stderr |
  sed -nE 's/^srun: error: .* task.*: Exited with exit code ([0-9]+)$/\1/p' >"$statuses"
status=${PIPESTATUS[0]}
for each in "$status" $(sort -u "$statuses"); do
  case $each in
    42 | 134 | 137 | 138 | 143) ;;
    *) exit "$each" ;; # final, whatever the others return
  esac
done
if [[ ${SLURM_RESTART_COUNT:-0} -lt ${MAX_RESTARTS:-100} ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
