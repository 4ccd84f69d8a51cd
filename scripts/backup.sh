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

# usage: die CODE MESSAGE HINT
die() {
    printf 'error: %s\nhint: %s\n' "$2" "$3" >&2
    exit "$1"
}

# usage: is_true VARIABLE   (unset and empty are false)
is_true() {
    local value=${!1:-}
    case ${value,,} in
    true | 1 | yes) return 0 ;;
    false | 0 | no | '') return 1 ;;
    *) die 2 "read $1: ${value@Q} is neither true nor false" "set $1=true or $1=false; backup.sh --help lists the settings" ;;
    esac
}

# Sets `lifeboat`. The checkout's own build comes before the one in PATH: this script belongs to it.
find_lifeboat() {
    local root target
    root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
    target=${CARGO_TARGET_DIR:-$root/target}
    if [ -n "${LIFEBOAT_BIN:-}" ]; then
        lifeboat=$(command -v -- "$LIFEBOAT_BIN") ||
            die 2 "run ${LIFEBOAT_BIN@Q}: there is no such program" "correct LIFEBOAT_BIN, or unset it: backup.sh --help"
        return
    fi
    for lifeboat in "$target/release/lifeboat" "$target/debug/lifeboat"; do
        if [ -x "$lifeboat" ]; then return; fi
    done
    if lifeboat=$(command -v lifeboat); then return; fi
    lifeboat=$target/release/lifeboat
    if ! [ -f "$root/Cargo.toml" ] || ! command -v cargo >/dev/null; then
        die 1 "find lifeboat: it is not built, and cannot be built here" "set LIFEBOAT_BIN to the binary, or install Rust and run cargo build --release"
    fi
    echo "building lifeboat in $target" >&2
    cargo build --quiet --release --locked --manifest-path "$root/Cargo.toml" --target-dir "$target" -p lifeboat </dev/null >&2 ||
        die 1 "build lifeboat: cargo failed" "see above; cargo build --release repeats it"
}

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
