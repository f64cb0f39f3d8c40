#!/bin/bash
# Run a command again while its exit status requests a restart: until_done.sh COMMAND ...
# A SIGTERM or Ctrl-C is passed on as SIGTERM; the command then saves, and is not started again.
set -u

child='' stop=''
trap 'stop=1; kill -TERM "$child" 2>/dev/null' TERM INT
for ((restarts = 0; ; restarts++)); do
  "$@" &
  child=$!
  while true; do # a signal interrupts a wait
    wait "$child"
    status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  case $status in
    42 | 134 | 137 | 138 | 143) ;;
    *) exit "$status" ;;
  esac
  if [[ -n $stop || $restarts -ge ${MAX_RESTARTS:-100} ]]; then
    exit "$status"
  fi
  echo "status $status: starting again" >&2
  sleep "${RESTART_DELAY:-10}"
done
