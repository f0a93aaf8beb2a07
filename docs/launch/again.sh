#!/bin/bash
# Repeats a command after exit codes 4 and 137 (see docs/launch/README.md).
#   bash again.sh mdlm train experiments/owt_small.py --out runs/owt
# At most AGAIN_TRIES tries (100), AGAIN_AFTER seconds (30) apart.
child=
trap 'kill -TERM "$child" 2>/dev/null' TERM
trap : INT   # the terminal sends it to the command too, which saves and ends
for _ in $(seq "${AGAIN_TRIES:-100}"); do
    "$@" &
    child=$!
    while true; do
        wait "$child"
        code=$?
        kill -0 "$child" 2>/dev/null || break   # otherwise a signal interrupted the wait, and the command still runs
    done
    case $code in
        4 | 137) echo "again.sh: exit code $code, again in ${AGAIN_AFTER:-30} s" >&2 ;;
        *) exit "$code" ;;
    esac
    sleep "${AGAIN_AFTER:-30}"
done
exit "$code"
