# A database host on which docs/install.md is followed: Debian with PostgreSQL 15 as its package makes it, artifacts, and two packages of
# lifeboat. Nobody has installed anything yet.
#
# No systemd runs here. scenes/systemctl.sh stands in for it.

# In its very place, because apt gives the scripts of packages a PATH of its own.
mv /usr/bin/systemctl /usr/bin/systemctl.real
install -m 755 "$SCENES/systemctl.sh" /usr/bin/systemctl
mkdir -p /run/systemd/system
DATA=/var/lib/postgresql/15/main
chmod 755 /srv
su postgres -c "umask 022 && mkdir -p /var/lib/postgresql/15 && $PG_BIN/initdb -D $DATA --no-sync --auth=peer --encoding=UTF8 --no-locale --wal-segsize=1 --data-checksums" >/dev/null
cat >>"$DATA/postgresql.conf" <<'CONF'
listen_addresses = ''
unix_socket_directories = '/var/run/postgresql'
fsync = on
shared_buffers = 128MB
max_wal_size = 1GB
max_connections = 20
log_line_prefix = '%m [%p] %q%u@%d '
CONF
systemctl restart postgresql
mkdir -p /srv/artifacts/builds
printf 'build 17: all tests passed\n' >/srv/artifacts/builds/17.log
