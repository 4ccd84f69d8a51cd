# The machine of docs/tutorial.md: PostgreSQL 15 as it runs everywhere, with a database, and nobody has heard of backups.

DATA=/var/lib/postgresql/15/main

umask 022
install -d -m 700 /var/lib/postgresql/15
# Small and quick: a test has nothing to lose.
"$PG_BIN/initdb" -D "$DATA" --no-sync --username=postgres --auth=trust --encoding=UTF8 --no-locale --wal-segsize=1 --data-checksums
cat >>"$DATA/postgresql.conf" <<'CONF'
listen_addresses = ''
unix_socket_directories = '/var/run/postgresql'
shared_buffers = 32MB
max_connections = 20
timezone = 'UTC'
log_timezone = 'UTC'
CONF
"$PG_BIN/pg_ctl" -D "$DATA" -l /var/log/postgresql/postgresql-15-main.log -w start
psql -X -q -d postgres -c 'CREATE DATABASE shop'
psql -X -q -d shop <<'SQL'
CREATE TABLE orders (id int PRIMARY KEY, placed timestamptz NOT NULL DEFAULT clock_timestamp());
INSERT INTO orders SELECT generate_series(1, 1000);
SQL
mkdir -p /srv/restored /srv/drills
