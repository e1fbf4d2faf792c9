#!/bin/sh
# The candidate has proved healthy: it takes the public port, then the old one goes.
set -eu
cd "$HELLO_HOME"
candidate=$(cat candidate.pid)
kill -USR1 "$candidate"
if [ -f serving.pid ] && old=$(cat serving.pid) && [ "$old" != "$candidate" ]; then
  sleep 0.3
  kill "$old" 2>/dev/null || true
fi
mv candidate.pid serving.pid
echo "serving $OPS_VERSION"
