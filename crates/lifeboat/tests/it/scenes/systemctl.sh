#!/bin/bash
# Stands in for systemctl on a machine on which no systemd runs. Links are made by the real one, without a manager; a unit that would be
# started is held against systemd's own verification first. A service of one shot is run: as its user, with its environment, on a file system
# that is read-only but for what the unit names. Others are noted as running.
set -eu
notes=/run/units
mkdir -p "$notes"
now=false units=() verb=''
if [ "$1" = inside ]; then
    verb=$1 units=("$2")
    command=("${@:3}")
    set --
fi
for word in "$@"; do
    case $word in
    --now) now=true ;;
    -*) ;;
    *) if [ -z "$verb" ]; then verb=$word; else units+=("$word"); fi ;;
    esac
done

# usage: values UNIT KEY   (of the unit and its drop-ins; an empty value takes back what was there)
values() {
    local line
    local -a found=()
    while IFS= read -r line; do
        case $line in
        "$2=") found=() ;;
        "$2="*) found+=("${line#*=}") ;;
        esac
    done < <(cat "/usr/lib/systemd/system/$1" /etc/systemd/system/"$1".d/*.conf 2>/dev/null)
    [ ${#found[@]} -eq 0 ] || printf '%s\n' "${found[@]}"
}

# usage: inside UNIT COMMAND [ARGUMENT]...
inside() {
    local unit=$1 user state cache path name capabilities=-all
    local -a writable=() variables=()
    shift
    user=$(values "$unit" User | tail -n 1)
    [ -z "$(values "$unit" LoadCredential)" ] || { echo "Failed at step CREDENTIALS" >&2; return 243; }
    state=$(values "$unit" StateDirectory) cache=$(values "$unit" CacheDirectory)
    for path in ${state:+"/var/lib/$state"} ${cache:+"/var/cache/$cache"}; do
        # As systemd does it: what is there is given to the user of the unit, with all that is in it.
        install -d -m "$(values "$unit" StateDirectoryMode | tail -n 1)" "$path"
        chown -R "$user:" "$path"
        writable+=("$path")
    done
    for path in $(values "$unit" ReadWritePaths); do
        if [ -e "${path#-}" ]; then writable+=("${path#-}"); fi
    done
    read -ra variables <<<"$(values "$unit" Environment | tr '\n' ' ')"
    for name in $(values "$unit" CapabilityBoundingSet); do
        name=${name#CAP_}
        capabilities+=,+${name,,}
    done
    export -f seal
    # ProtectSystem=strict, PrivateTmp, NoNewPrivileges, CapabilityBoundingSet.
    unshare --mount bash -c 'seal "$@"' seal "${#writable[@]}" "${writable[@]}" \
        setpriv --reuid="$user" --regid="$user" --init-groups --no-new-privs --bounding-set="$capabilities" \
        env -i HOME="$(getent passwd "$user" | cut -d : -f 6)" USER="$user" PATH=/usr/bin:/bin LC_ALL=C.UTF-8 "${variables[@]}" "$@"
}

run_once() {
    local -a command
    read -ra command <<<"$(values "$1" ExecStart)"
    # 3: SuccessExitStatus.
    inside "$1" "${command[@]}" >>/run/journal 2>&1 || [ $? -eq 3 ] || { echo "Job for $1 failed." >&2; tail -n 5 /run/journal >&2; exit 1; }
}

seal() {
    local count=$1 place
    shift
    for place in "${@:1:$count}"; do mount --bind "$place" "$place"; done
    mount -t tmpfs -o mode=1777 tmp /tmp
    for place in / $(findmnt --list --noheadings --output TARGET | grep -vE '^/((proc|dev|sys|tmp)(/|$)|$)'); do
        case " ${*:1:$count} " in *" $place "*) continue ;; esac
        # What is below another mount cannot be reached, nor written.
        mount -o remount,bind,ro "$place" 2>/dev/null || true
    done
    if touch /usr/sealed /etc/sealed /srv/sealed 2>/dev/null; then echo "the seal is open" >&2; exit 1; fi
    shift "$count"
    cd /
    exec "$@"
}

pg_ctl() { su postgres -c "$PG_BIN/pg_ctl -D /var/lib/postgresql/15/main -l /var/log/postgresql/postgresql-15-main.log -w $*" >>/run/journal 2>&1; }

start() {
    case $1 in
    postgresql)
        case $verb in
        reload) pg_ctl reload ;;
        *)
            pg_ctl stop -m fast || true
            pg_ctl start
            ;;
        esac
        ;;
    *)
        systemd-analyze verify "$1"
        if [ "$(values "$1" Type)" = oneshot ]; then run_once "$1"; else touch "$notes/$1"; fi
        ;;
    esac
}

case $verb in
inside) inside "${units[0]}" "${command[@]}" ;;
daemon-reload) ;;
enable | disable)
    for unit in "${units[@]}"; do
        SYSTEMD_OFFLINE=1 /usr/bin/systemctl.real "$verb" "$unit"
        if $now && [ "$verb" = enable ]; then start "$unit"; fi
        if $now && [ "$verb" = disable ]; then rm -f "$notes/$unit"; fi
    done
    ;;
start | restart | reload) for unit in "${units[@]}"; do start "$unit"; done ;;
stop) for unit in "${units[@]}"; do rm -f "$notes/$unit"; done ;;
is-active) for unit in "${units[@]}"; do [ -e "$notes/$unit" ] || exit 3; done ;;
*)
    echo "systemctl: $verb cannot be done here" >&2
    exit 1
    ;;
esac
