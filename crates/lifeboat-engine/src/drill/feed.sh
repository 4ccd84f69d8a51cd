#!/bin/sh
# restore_command of a drill's server: asks the drill for one file of WAL, and waits until it is there.
#
#   sh feed.sh DIRECTORY %f %p
#
# Exits with 0: the file is there; 1: the archive ends before it; above 125, at which PostgreSQL stops instead of taking up writing:
# anything else, also that the drill is not there any more.
set -u
wal=$1 file=$2 target=$3
ask=$file.$$

give_up() {
    rm -f "$wal/want/$ask"
    echo "lifeboat drill: $file: $1" >&2
    exit "$2"
}

# The drill's process as `beat` names it: it is not visible to us everywhere (hidepid), so its absence counts only after it was seen.
is_there() {
    { read -r line < "/proc/$1/stat"; } 2>/dev/null || return 1
    set -- "$2" ${line##*) }
    [ "$1" = "${21:-}" ]
}

if [ -f "$wal/ready/$file" ] && mv -f "$wal/ready/$file" "$target" 2>/dev/null; then
    exit 0
fi
trap 'rm -f "$wal/want/$ask"; exit 143' TERM INT QUIT
: > "$wal/want/$ask" || give_up "cannot ask for it" 201
last= still=0 seen=no
while :; do
    if [ -f "$wal/ready/$file" ] && mv -f "$wal/ready/$file" "$target" 2>/dev/null; then
        rm -f "$wal/want/$ask"
        exit 0
    fi
    if [ -f "$wal/answer/$ask.absent" ]; then
        rm -f "$wal/want/$ask"
        exit 1
    fi
    if [ -f "$wal/answer/$ask.failed" ]; then
        read -r why < "$wal/answer/$ask.failed" || why=${why:-}
        give_up "$why" 202
    fi
    { read -r process born beat < "$wal/beat"; } 2>/dev/null || give_up "the drill has ended" 203
    if is_there "$process" "$born"; then
        seen=yes
    elif [ "$seen" = yes ]; then
        give_up "the drill's process is gone" 204
    fi
    if [ "$beat" = "$last" ]; then
        still=$((still + 1))
        # Half a minute and more: each round sleeps for a hundredth of a second.
        [ "$still" -lt 3000 ] || give_up "the drill does not answer" 205
    else
        last=$beat still=0
    fi
    sleep 0.01
done
