# Runs beside `lifeboat demo` and cleans up after it, however it ends: it reads from a pipe that only the demo holds open,
# so that an end of input is the demo's end, by a signal that nobody can catch included. It ends only what the demo named:
# the command that it runs, and the servers whose postmaster.pid stands in the demo's directory.
#
# usage: guard.sh DIRECTORY keep|remove|empty   (empty: the directory was there before and stays)
directory=$1 what=$2 current=

while read -r verb pid; do
    case $verb in
    run) current=$pid ;;
    ran) current= ;;
    esac
done

is_running() { kill -0 "$1" 2>/dev/null; }

# usage: wait_for PID TENTHS
wait_for() {
    n=0
    while is_running "$1" && [ "$n" -lt "$2" ]; do
        sleep 0.1
        n=$((n + 1))
    done
    ! is_running "$1"
}

stop_servers() {
    for file in "$directory"/*/pgdata/postmaster.pid; do
        [ -f "$file" ] || continue
        pid=$(head -n 1 "$file")
        # A number in a file that a crash left behind may be another's by now.
        if [ -d /proc/self ] && [ "$(readlink "/proc/$pid/cwd")" != "${file%/postmaster.pid}" ]; then continue; fi
        # Fast: a checkpoint, and what is kept can be started again. Nobody waits for that if the data goes anyway.
        if [ "$what" = keep ]; then kill -INT "$pid"; else kill -QUIT "$pid"; fi
        wait_for "$pid" 600 || kill -KILL "$pid"
    done
}

if [ -n "$current" ] && is_running "$current"; then
    kill -TERM "$current"
    wait_for "$current" 100 || kill -KILL "$current"
    # A server that it started a moment ago has not written its number yet.
    sleep 1
fi
stop_servers
case $what in
remove) rm -rf "$directory" ;;
empty) find "$directory" -mindepth 1 -delete ;;
esac
