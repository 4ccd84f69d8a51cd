# The primary store is gone, and the host with it; the replica has everything.
archive_all
rm -r /srv/backups
