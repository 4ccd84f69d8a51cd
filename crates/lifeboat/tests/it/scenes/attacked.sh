# Everything that was archived is old enough that the bucket's clock, of whole seconds, tells it from what the attacker does next.
archive_all
pg_ctl -D /var/lib/postgresql/15/main -m immediate stop
sleep 2
date -u +%Y-%m-%dT%H:%M:%SZ >/mnt/safe/last-good
sleep 2
