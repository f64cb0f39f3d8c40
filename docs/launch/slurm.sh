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

status=0
srun --kill-on-bad-exit=1 \
  "${PYTHON:-.venv/bin/python}" -u train.py \
  --config="${CONFIG:-configs/vdm.py:ucf101}" \
  --workdir="${WORKDIR:-runs/ucf101}" \
  --config.data.path="${DATA-/data/tfds}" \
  --config.mesh.fsdp=16 \
  "$@" || status=$?
case $status in
  42 | 134 | 137 | 138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$status"
