#!/bin/sh
# Restore a dump into a new, empty database, all of it or nothing.
#
#   OPS_DATABASE_OWNER_URL=postgresql://ops_owner@/ops_new restore.sh /var/backups/ops/ops-2026-11-24T020000Z.dump
#
# Then give the roles their rights (ops db roles, ops db upgrade), look (ops doctor, ops status), and let it go on
# (ops resume): on another server, or one that was recovered, the ledger is paused until you say so.
set -eu
url=${OPS_DATABASE_OWNER_URL:-$DATABASE_URL}
pg_restore --single-transaction --exit-on-error --no-owner --no-privileges --clean --if-exists --dbname="$url" "$1"
echo "restored $1"
