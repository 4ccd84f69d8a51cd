#!/usr/bin/env bash
# Takes a backup with lifeboat. This is the entry point that runbooks name; all the work is the binary's.
#
# It must not decide anything that `lifeboat backup` decides, and must not need a configuration file.
set -euo pipefail

usage() {
    cat <<'USAGE'
Take a backup of the artifacts, and of the database if asked

Usage: backup.sh --output DIR [--include-postgres] [--dry-run]

  --output DIR        repository; made if only its last part is missing
  --include-postgres  include the database; the same as INCLUDE_POSTGRES=true
  --dry-run           print what would be done; needs no secret and no server, and changes nothing
  -h, --help          print this

Environment (true, 1, yes or false, 0, no where a choice is asked for):
  LIFEBOAT_ARTIFACTS    directory of the artifacts
  INCLUDE_POSTGRES      include the database [default: false]
  ENABLE_POSTGRES_DUMP  copy what is in the database; without it, --include-postgres only names the
                        database in the manifest [default: false]
  PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD, PGPASSFILE, PGDATA, …   the server, as for psql
  LIFEBOAT_CONFIG       configuration file, where there is one
  LIFEBOAT_BIN          the lifeboat binary [default: the one built here, the one in PATH, or it is built]

The first real run makes a signing key and a restore identity in the user's configuration directory and says where.
Restore with restore.sh. Exit codes are those of lifeboat: 0 done, 1 failed, 2 bad command line, 3 done with findings, …
USAGE
}

script=backup.sh
# shellcheck source=scripts/entry-point.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/entry-point.sh"

output=
include=false
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
    --output=*)
        output=${1#*=}
        [ -n "$output" ] || die 2 "--output needs a directory" "backup.sh --output DIR"
        ;;
    --output)
        case ${2:-} in
        '' | --*) die 2 "--output needs a directory" "backup.sh --output DIR" ;;
        esac
        output=$2
        shift
        ;;
    --include-postgres) include=true ;;
    --dry-run) arguments+=(--dry-run) ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) die 2 "unknown argument ${1@Q}" "backup.sh --help lists what there is" ;;
    esac
    shift
done
[ -n "$output" ] || die 2 "--output is missing: where should the backup go?" "backup.sh --output DIR"

# Both are read in any case: a word that is neither must be told even where it would not matter today.
if is_true INCLUDE_POSTGRES; then include=true; fi
dump=false
if is_true ENABLE_POSTGRES_DUMP; then dump=true; fi
if $include; then
    arguments+=(--include-postgres)
    if ! $dump; then
        arguments+=(--record-only)
        echo "note: the database is named in the manifest and nothing of it is copied; ENABLE_POSTGRES_DUMP=true copies it" >&2
    fi
else
    arguments+=(--exclude-postgres)
    if $dump; then
        echo "warning: ENABLE_POSTGRES_DUMP does nothing without --include-postgres: the database is not backed up" >&2
    fi
fi

find_lifeboat
exec "$lifeboat" backup "--output=$output" "${arguments[@]}"
