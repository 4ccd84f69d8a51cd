#!/usr/bin/env bash
# Restores a backup with lifeboat. This is the entry point that runbooks name; all the work is the binary's.
#
# It must not decide anything that `lifeboat restore` decides, and must not need a configuration file.
set -euo pipefail

usage() {
    cat <<'USAGE'
Restore the artifacts of a backup, and the database if asked

Usage: restore.sh [--dry-run] BACKUP-ID

  BACKUP-ID   such as conductor-backup-20240315T120000Z, or latest
  --dry-run   print what would be done; needs no secret and no server, and changes nothing
  -h, --help  print this

Environment (true, 1, yes or false, 0, no where a choice is asked for):
  BACKUP_BASE         repository: what backup.sh --output named [default: the configured one]
  LIFEBOAT_ARTIFACTS  put the artifacts here; must be empty or missing
  RESTORE_POSTGRES    restore the database as well [default: false]
  PGDATA              put the cluster here; must be empty or missing
  LIFEBOAT_IDENTITY_FILE   restore identity [default: the one in the user's configuration directory]
  LIFEBOAT_CONFIG     configuration file, where there is one
  LIFEBOAT_BIN        the lifeboat binary [default: the one built here, the one in PATH, or it is built]

Exit codes are those of lifeboat: 0 done, 1 failed, 2 bad command line, 10 no repository, 12 wrong key, 21 damaged, …
USAGE
}

script=restore.sh
# shellcheck source=scripts/entry-point.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/entry-point.sh"

backup=
dry_run=false
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry_run=true ;;
    -h | --help)
        usage
        exit 0
        ;;
    -*) die 2 "unknown argument ${1@Q}" "restore.sh --help lists what there is" ;;
    '') die 2 "the backup id is empty" "lifeboat --repository DIR list shows the backups" ;;
    *)
        [ -z "$backup" ] || die 2 "one backup at a time: ${backup@Q} and ${1@Q} were named" "restore.sh [--dry-run] BACKUP-ID"
        backup=$1
        ;;
    esac
    shift
done
[ -n "$backup" ] || die 2 "the backup id is missing: which backup?" "restore.sh [--dry-run] BACKUP-ID; lifeboat --repository DIR list shows the backups"

repository=()
if [ -n "${BACKUP_BASE:-}" ]; then
    repository=("--repository=$BACKUP_BASE")
elif [ -z "${LIFEBOAT_REPOSITORY:-}${LIFEBOAT_CONFIG:-}" ] && ! [ -e lifeboat.toml ] && ! [ -e /etc/lifeboat/lifeboat.toml ]; then
    die 2 "find the repository: BACKUP_BASE is not set" "set BACKUP_BASE to the directory that backup.sh --output named"
fi

targets=()
if [ -n "${LIFEBOAT_ARTIFACTS:-}" ]; then targets+=("--artifacts=$LIFEBOAT_ARTIFACTS"); fi
if is_true RESTORE_POSTGRES; then
    [ -n "${PGDATA:-}" ] || die 2 "restore the database: PGDATA is not set" "set PGDATA to the directory for the cluster (empty or missing), or RESTORE_POSTGRES=false"
    targets+=("--pgdata=$PGDATA")
fi
find_lifeboat
what_to_set="set LIFEBOAT_ARTIFACTS to a directory for the artifacts, and/or RESTORE_POSTGRES=true and PGDATA to one for the cluster"
if [ ${#targets[@]} -eq 0 ]; then
    $dry_run || die 2 "restore: nothing says where to" "$what_to_set"
    # Whoever looks before choosing still learns whether the backup is there, whether it is signed, and what is in it.
    "$lifeboat" "${repository[@]}" show -- "$backup"
    echo "warning: nothing would be restored: $what_to_set" >&2
    exit 0
fi
if $dry_run; then targets+=(--dry-run); fi
exec "$lifeboat" "${repository[@]}" restore "${targets[@]}" -- "$backup"
