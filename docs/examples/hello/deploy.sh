#!/bin/sh
# Start the wanted release as a candidate, beside the one that serves. The health gate decides; then promote.sh or
# abort.sh runs. Everything it leaves behind is in $HELLO_HOME.
set -eu
cd "$(dirname "$0")"
release="releases/$OPS_VERSION"
[ -d "$release" ] || { echo "there is no release $OPS_VERSION" >&2; exit 1; }

# An effect that can be counted from outside: who began, when, and whether it came to its end.
echo "begin $OPS_JOB_ID $OPS_ATTEMPT $OPS_VERSION" >> "$HELLO_HOME/effects.log"
echo "deploying $OPS_VERSION to $OPS_INFRASTRUCTURE"
if [ -f "$release/slow" ]; then
  for step in 1 2 3 4 5 6; do
    echo "copying part $step of 6"
    sleep 1
  done
fi
sh ./abort.sh
# It outlives this deployment, so it leaves its process group.
setsid "$HELLO_PYTHON" server.py "$release" "$HELLO_CANDIDATE_PORT" "$HELLO_PORT" < /dev/null \
  >> "$HELLO_HOME/server.log" 2>&1 &
echo "end $OPS_JOB_ID $OPS_ATTEMPT $OPS_VERSION" >> "$HELLO_HOME/effects.log"
