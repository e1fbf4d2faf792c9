#!/bin/sh
# Dump the database into one file, check that it can be read, and keep the newest ones.
#
#   DATABASE_URL=postgresql://ops_owner@/ops backup.sh /var/backups/ops [KEEP]
#
# The encryption keys are not in it, on purpose: keep them elsewhere, and keep them as long as the dumps.
# Set OPS_BACKUP_STAMP to a file that is touched when all of this has succeeded; `ops doctor` tells its age.
set -eu
folder=$1
keep=${2:-14}
url=${OPS_DATABASE_OWNER_URL:-$DATABASE_URL}
umask 077
mkdir -p "$folder"
file=$folder/ops-$(date -u +%Y-%m-%dT%H%M%SZ).dump
# Under another name until it is whole: half a dump must not look like one.
trap 'rm -f "$file.part"' EXIT
# In a database that is shared with others, ours is one schema, and only that is ours to read.
pg_dump --format=custom --no-owner ${OPS_DATABASE_SCHEMA:+--schema="$OPS_DATABASE_SCHEMA"} --file="$file.part" "$url"
pg_restore --list "$file.part" >/dev/null
mv "$file.part" "$file"
ls -1 "$folder"/ops-*.dump | sort -r | tail -n +"$((keep + 1))" | while read -r old; do rm -f "$old"; done
if [ -n "${OPS_BACKUP_STAMP:-}" ]; then touch "$OPS_BACKUP_STAMP"; fi
echo "$file"
