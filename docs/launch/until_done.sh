#!/bin/bash
# Run a command again while its exit status requests a restart: until_done.sh COMMAND ...
# A SIGTERM or Ctrl-C is passed on as SIGTERM; the command then saves, and is not started again.
set -u

child='' stop='' interrupted=''
trap 'stop=${child:-early} interrupted=1; [[ -z $child ]] || kill -TERM "$child"' TERM INT
for ((restarts = 0; ; restarts++)); do
  "$@" &
  child=$!
  [[ $stop != early ]] || kill -TERM "$child" # it came before the process was known
  while true; do
    interrupted=''
    wait "$child"
    status=$?
    [[ -n $interrupted ]] || break # a signal ends a wait, with a status of its own
  done
  child=''
  case $status in
    42 | 134 | 137 | 138 | 143) ;;
    *) exit "$status" ;;
  esac
  if [[ -n $stop || $restarts -ge ${MAX_RESTARTS:-100} ]]; then
    exit "$status"
  fi
  echo "status $status: starting again" >&2
  sleep "${RESTART_DELAY:-10}" &
  child=$! # a signal ends the delay
  wait "$child"
  child=''
  [[ -z $stop ]] || exit "$status"
done
