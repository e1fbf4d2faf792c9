#!/bin/sh
# Remove a candidate that was not promoted; what serves goes on serving.
cd "$HELLO_HOME" || exit 1
if [ -f candidate.pid ]; then
  kill "$(cat candidate.pid)" 2>/dev/null
  rm -f candidate.pid
  echo "the candidate is stopped"
fi
exit 0
