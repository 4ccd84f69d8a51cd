# The server died, and its control file with it: it does not start again. The disk was swapped: artifacts are gone.
archive_all
pg_ctl -D /var/lib/postgresql/15/main -m immediate stop
: >/var/lib/postgresql/15/main/global/pg_control
rm -r /srv/artifacts
