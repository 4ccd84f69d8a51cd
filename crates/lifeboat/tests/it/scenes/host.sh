# A database host as docs/runbook.md describes it, on a working day: PostgreSQL 15 that archives through lifeboat, artifacts, two places of
# one repository, and the identity on a medium of its own. Everything stands in directories that only this scene sees.

# As `initdb` makes it on Debian, but small and quick: a test has nothing to lose.
DATA=/var/lib/postgresql/15/main
LOG=/var/log/postgresql/postgresql-15-main.log

umask 022
install -d -m 700 /var/lib/postgresql/15
"$PG_BIN/initdb" -D "$DATA" --no-sync --username=postgres --auth=trust --encoding=UTF8 --no-locale --wal-segsize=1 --data-checksums
cat >>"$DATA/postgresql.conf" <<'CONF'
listen_addresses = ''
unix_socket_directories = '/var/run/postgresql'
fsync = on
shared_buffers = 128MB
max_wal_size = 1GB
max_connections = 20
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %q%u@%d '
log_statement = 'ddl'
jit = off
wal_level = replica
archive_mode = on
archive_command = 'lifeboat --config /etc/lifeboat/lifeboat.toml wal push %p'
archive_timeout = 60
CONF

lifeboat key generate --out /etc/lifeboat
install -m 600 /etc/lifeboat/identity.txt /mnt/safe/identity.txt
rm /etc/lifeboat/identity.txt
REPOSITORIES='[[repository]]
name = "primary"
url = "/srv/backups"

[[repository]]
name = "offsite"
url = "/mnt/offsite/backups"'
if [ -n "${BUCKET_URL:-}" ]; then
    REPOSITORIES="[[repository]]
name = \"bucket\"
url = \"$BUCKET_URL\""
fi
cat >/etc/lifeboat/lifeboat.toml <<CONF
name = "shop"

[postgres]
dsn = "host=/var/run/postgresql user=postgres dbname=shop"
data_directory = "/var/lib/postgresql/15/main"
bin_directory = "$PG_BIN"

[artifacts]
directory = "/srv/artifacts"
reference_query = "SELECT name, sha256 FROM artifacts"

$REPOSITORIES

[encryption]
recipients = ["$(tail -n 1 /etc/lifeboat/recipients.txt)"]
host_identity = "/etc/lifeboat/host-identity.txt"

[signing]
key_file = "/etc/lifeboat/signing.key"
password = { file = "/etc/lifeboat/signing.password" }

[trust]
keys = ["/etc/lifeboat/signing.pub"]

[audit]
key_file = "/etc/lifeboat/audit.key"

[retention]
keep_daily = 14
recovery_window = "14d"

[policy]
environment = "$ENVIRONMENT"

[approvals]
allowed_signers = "/etc/lifeboat/allowed_signers"

[drill]
directory = "/srv/drills"

[[drill.assert]]
name = "the orders are there"
query = "SELECT count(*) FROM orders"
at_least = 1000
CONF

mkdir -p /srv/artifacts/builds /srv/drills
printf 'build 17: all tests passed\n' >/srv/artifacts/builds/17.log
printf 'build 18: all tests passed\n' >/srv/artifacts/builds/18.log
touch /etc/lifeboat/allowed_signers

lifeboat init
"$PG_BIN/pg_ctl" -D "$DATA" -l "$LOG" -w start
psql -X -q -d postgres -c 'CREATE DATABASE shop'
psql -X -q -d shop <<SQL
CREATE TABLE artifacts (name text PRIMARY KEY, sha256 text NOT NULL);
INSERT INTO artifacts VALUES
    ('builds/17.log', '$(sha256sum </srv/artifacts/builds/17.log | cut -c1-64)'),
    ('builds/18.log', '$(sha256sum </srv/artifacts/builds/18.log | cut -c1-64)');
CREATE TABLE orders (id int PRIMARY KEY, placed timestamptz NOT NULL DEFAULT clock_timestamp());
INSERT INTO orders SELECT generate_series(1, 1000);
SQL
lifeboat backup
psql -X -q -d shop -c 'INSERT INTO orders SELECT generate_series(1001, 1200)'
lifeboat restore-point release-41 --wait
psql -X -q -d shop -c 'INSERT INTO orders SELECT generate_series(1201, 1234)'

# For the accidents that follow: closes the open segment, and waits until everything is archived.
archive_all() {
    psql -X -q -d postgres -c 'SELECT pg_switch_wal()' >/dev/null
    until [ "$(psql -X -A -t -d postgres -c "SELECT count(*) FROM pg_ls_dir('pg_wal/archive_status') name WHERE name LIKE '%.ready'")" = 0 ]; do
        sleep 0.1
    done
}
