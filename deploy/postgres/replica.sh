#!/bin/bash
# A streaming replica of the service `postgres`: copied at the first start, followed from then on.
set -euo pipefail
data=/var/lib/postgresql/data
if [ ! -s "$data/PG_VERSION" ]; then
    until pg_isready --quiet --host postgres --username feedmill; do sleep 1; done
    find "$data" -mindepth 1 -delete
    pg_basebackup --host postgres --username feedmill --pgdata "$data" --wal-method stream --write-recovery-conf \
        --create-slot --slot replica --checkpoint fast
    chmod 0700 "$data"
fi
exec postgres -D "$data" -c hot_standby=on -c hot_standby_feedback=on
