# Sourced by backup.sh and restore.sh, which set `script` to their name: reads a choice from the environment, finds lifeboat or
# builds it, and ends with one clear line where something is wrong.
#
# It must not decide anything that lifeboat decides. It is a file of its own so that both find the same binary.
# shellcheck shell=bash

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
    *) die 2 "read $1: ${value@Q} is neither true nor false" "set $1=true or $1=false; ${script:?} --help lists the settings" ;;
    esac
}

# Sets `lifeboat`. The checkout's own build comes before the one in PATH: this script belongs to it.
find_lifeboat() {
    local root target
    root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
    target=${CARGO_TARGET_DIR:-$root/target}
    if [ -n "${LIFEBOAT_BIN:-}" ]; then
        lifeboat=$(command -v -- "$LIFEBOAT_BIN") ||
            die 2 "run ${LIFEBOAT_BIN@Q}: there is no such program" "correct LIFEBOAT_BIN, or unset it: $script --help"
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
    AWS_LC_SYS_NO_JITTER_ENTROPY="${AWS_LC_SYS_NO_JITTER_ENTROPY:-1}" cargo build --quiet --release --locked --manifest-path "$root/Cargo.toml" --target-dir "$target" -p lifeboat </dev/null >&2 ||
        die 1 "build lifeboat: cargo failed" "see above; cargo build --release repeats it"
}
