set -euo pipefail
bin=$(realpath "$1")
# As root, in a namespace of its own: unshare --uts bash testdata/make-repository-v1.sh target/debug/lifeboat
hostname golden
base=/tmp/lb-golden; rm -rf $base; mkdir -p $base/source/builds/17 $base/socket; chmod 755 $base; cd $base
pg=/usr/lib/postgresql/15/bin
mkdir data; chown postgres data socket
setpriv --reuid postgres --regid postgres --clear-groups $pg/initdb -D data -U postgres --auth=trust --no-locale --encoding=UTF8 >/dev/null
setpriv --reuid postgres --regid postgres --clear-groups $pg/pg_ctl -D data -w -o "-c listen_addresses= -c unix_socket_directories=$base/socket" -l $base/data/log start >/dev/null
trap 'setpriv --reuid postgres --regid postgres --clear-groups $pg/pg_ctl -D $base/data -m fast stop >/dev/null' EXIT
psql -qX -h $base/socket -U postgres postgres <<'SQL'
CREATE ROLE orchestrator;
CREATE TABLE builds (id int PRIMARY KEY, log text);
ALTER TABLE builds OWNER TO orchestrator;
INSERT INTO builds SELECT i, repeat('build ' || i || ' ', 30) FROM generate_series(1, 2000) i;
CREATE TABLE nothing (n int);
SQL
export HOME=$base/home PGHOST=$base/socket PGUSER=postgres PGDATABASE=postgres LIFEBOAT_NAME=golden LIFEBOAT_ARTIFACTS=$base/source
mkdir $HOME
python3 - <<'P'
import os
def put(name, content, mode=0o644):
    path = b"source/" + name.encode()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f: f.write(content)
    os.chmod(path, mode); os.utime(path, (1710504000, 1710504000))
put("builds/17/log.txt", b"compiling\n")
put("builds/17/result.xml", b"<testsuite/>\n", 0o600)
put("builds/17/old", b"gone after the first backup")
put("empty", b"")
put("run.sh", b"#!/bin/sh\n", 0o755)
put("long.log", b"".join(b"%07d: ok\n" % n for n in range(40000)))
put("with space/100%/%2F", b"percent")
put("unicode/größe/日本語", "größe".encode())
put("s" * 255, b"a segment that is cut")
put("/".join(["m" * 204] * 5), b"a name that is replaced whole")
P
$bin backup --output $base/repo --include-postgres --copy logical
python3 - <<'P'
import os
os.unlink("source/builds/17/old")
with open("source/builds/17/log.txt", "wb") as f: f.write(b"compiling\ndone\n")
with open("source/new", "wb") as f: f.write(b"new in the second backup\n")
for name in ("builds/17/log.txt", "new"): os.utime("source/" + name, (1710507600, 1710507600))
P
sleep 1.1
$bin backup --output $base/repo
