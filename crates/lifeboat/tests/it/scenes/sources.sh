# The sources, and a toolchain that has the program ready: a release build takes minutes, and is what the benchmarks make.
mkdir -p /srv/checkout /srv/packages
cp -r "$SOURCES"/{Cargo.toml,Cargo.lock,README.md,CHANGELOG.md,crates,benches,deploy,docs,policies,scripts,tools} /srv/checkout/
cat >/usr/local/bin/cargo <<'CARGO'
#!/bin/bash
set -eu
if [ "$1" != build ]; then PATH=$(dirname "$REAL_CARGO"):$PATH exec "$REAL_CARGO" "$@"; fi
while [ "$1" != --target-dir ]; do shift; done
install -D -m 755 "$BUILT" "$2/release/lifeboat"
CARGO
chmod 755 /usr/local/bin/cargo
