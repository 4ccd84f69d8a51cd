set -euo pipefail
# Adds the archive of a small cluster's WAL to a copy of the repository, with the keys that it was made with.
# As root, in a namespace of its own: unshare --uts bash testdata/add-wal-to-repository-v1.sh target/debug/lifeboat
bin=$(realpath "$1")
golden=$(realpath "$(dirname "$0")/repository-v1")
hostname golden
base=/tmp/lb-golden-wal; rm -rf $base; mkdir -p $base/socket $base/plain; chmod 755 $base; cd $base
pg=/usr/lib/postgresql/15/bin
cp "$bin" lifeboat; cp -r "$golden" v1
cat > lifeboat.toml <<T
name = "golden"
[[repository]]
url = "file://$base/v1/repository"
[signing]
key_file = "$base/v1/keys/signing.key"
password = { file = "$base/v1/keys/signing.password" }
[trust]
keys = ["$base/v1/keys/signing.pub"]
[encryption]
recipients = ["$(sed -n 's/^# public key: //p' v1/keys/identity.txt)"]
identity_file = "$base/v1/keys/identity.txt"
[wal]
spool = "$base/spool"
T
chown -R postgres .
as() { setpriv --reuid postgres --regid postgres --clear-groups env HOME=$base "$@"; }
as $pg/initdb -D data -U postgres --auth=trust --no-locale --encoding=UTF8 --wal-segsize=1 >/dev/null
cat >> data/postgresql.conf <<C
listen_addresses = ''
unix_socket_directories = '$base/socket'
archive_mode = on
archive_command = 'cp %p $base/plain/%f && $base/lifeboat --config $base/lifeboat.toml wal push %p'
restore_command = '$base/lifeboat --config $base/lifeboat.toml wal fetch %f %p'
max_wal_size = 4MB
min_wal_size = 2MB
C
start() { as $pg/pg_ctl -D data -w -l data/log start >/dev/null; }
stop() { as $pg/pg_ctl -D data -w -m fast stop >/dev/null; }
sql() { psql -qXAt -h $base/socket -U postgres postgres -c "$1"; }
start
trap 'as $pg/pg_ctl -D $base/data -m immediate stop >/dev/null 2>&1 || true' EXIT
sql "CREATE TABLE builds (id int PRIMARY KEY, log text)"
sql "INSERT INTO builds SELECT i, 'build ' || i FROM generate_series(1, 1000) i"
sql "SELECT pg_create_restore_point('golden')" >/dev/null
sql "SELECT pg_switch_wal()" >/dev/null
as $pg/pg_basebackup -h $base/socket -U postgres -D copy -c fast -X none --no-manifest 2>/dev/null
sql "INSERT INTO builds SELECT i, 'build ' || i FROM generate_series(1001, 1100) i"
stop
as touch data/recovery.signal
start
until [ "$(sql "SELECT pg_is_in_recovery()")" = f ]; do sleep 0.1; done
sql "INSERT INTO builds VALUES (0, 'on the second timeline')"
sql "SELECT pg_switch_wal()" >/dev/null
until [ -z "$(ls data/pg_wal/archive_status | grep ready || true)" ]; do sleep 0.1; done
stop
until [ -z "$(ls data/pg_wal/archive_status | grep ready || true)" ]; do sleep 0.1; done
(cd plain && sha256sum -- * | sort -k 2) > v1/wal.sha256
chown -R root: v1
mkdir -p "$golden/repository/wal"
cp -r v1/repository/wal/. "$golden/repository/wal/"
cp v1/wal.sha256 "$golden/wal.sha256"
