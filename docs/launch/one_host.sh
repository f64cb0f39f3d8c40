#!/bin/bash
# Train on all GPUs of one host, by one process: one_host.sh [FLAGS OF train.py]
set -eu

cd "$(dirname "$0")/../.."
exec docs/launch/until_done.sh \
  "${PYTHON:-.venv/bin/python}" -u train.py \
  --config="${CONFIG:-configs/vdm.py:ucf101}" \
  --workdir="${WORKDIR:-runs/ucf101}" \
  --config.data.path="${DATA-/data/tfds}" \
  --config.mesh.fsdp=8 \
  --heartbeat="${TMPDIR:-/tmp}/vdm_heartbeat.json" \
  "$@"
