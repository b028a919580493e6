#!/bin/sh
# Lets the replica connect, on the network of these services alone.
set -eu
echo "host replication feedmill all scram-sha-256" >> "$PGDATA/pg_hba.conf"
