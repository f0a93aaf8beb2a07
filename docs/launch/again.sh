#!/bin/bash
# Runs a command again for as long as that can help (exit codes: docs/launch/README.md).
#   bash again.sh mdlm train experiments/owt_small.py --out runs/owt
# It gives up after as many tries as AGAIN_TRIES says (100), AGAIN_AFTER seconds (30) apart.
child=
trap 'kill -TERM "$child" 2>/dev/null' TERM
trap : INT   # the command gets it from the terminal, saves, and ends
for _ in $(seq "${AGAIN_TRIES:-100}"); do
    "$@" &
    child=$!
    while true; do
        wait "$child"
        code=$?
        kill -0 "$child" 2>/dev/null || break   # the wait, not the command, was interrupted
    done
    case $code in
        4 | 137) echo "again.sh: exit code $code, again in ${AGAIN_AFTER:-30} s" >&2 ;;
        *) exit "$code" ;;
    esac
    sleep "${AGAIN_AFTER:-30}"
done
exit "$code"
