#!/bin/bash
# Train on all hosts of a Cloud TPU slice: tpu_vm.sh NAME ZONE [FLAGS OF train.py]
# Each host has this repository in ~/vdm_jax, set up by `make setup EXTRA=tpu`, and a folder
# that all hosts share mounted at /mnt/runs. JAX reads from the metadata who the hosts are.
set -eu

name=$1 zone=$2
shift 2
command=(
  docs/launch/until_done.sh
  "${PYTHON:-.venv/bin/python}" -u train.py
  --config="${CONFIG:-configs/vdm.py:ucf101}"
  --workdir="${WORKDIR:-/mnt/runs/ucf101}"
  --config.data.path="${DATA-/mnt/runs/tfds}"
  --config.mesh.fsdp=16
  --start_timeout=900
  --heartbeat=/tmp/vdm_heartbeat.json
  "$@"
)
# setsid: the run outlives the connection. Its output is in ~/vdm_jax.log of each host.
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
  cd ~/vdm_jax && setsid ${command[*]@Q} >>~/vdm_jax.log 2>&1 </dev/null &"
