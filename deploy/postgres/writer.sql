-- The role with which the database host backs up: lifeboat backup (local and stream), wal push, restore-point, wal status, doctor.
--
-- For PostgreSQL 13 to 18; run once, as a superuser, in the database that postgres.dsn names:
--
--   psql -d postgres -f writer.sql
--   psql -d postgres -v truth=1 -f writer.sql     also reads tables, so that drills can compare what was restored (docs/drill-truth.md)
--
-- and then set a password, which so reaches neither a file nor a log:   \password lifeboat_backup
--
-- REPLICATION lets it copy every byte of the cluster (BASE_BACKUP): whoever has this role has the data, as whoever can read the data
-- directory does. What it cannot do is change any: it owns nothing, may write no table and no file, and alter no setting.

\set ON_ERROR_STOP on

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lifeboat_backup') THEN
    CREATE ROLE lifeboat_backup;
  END IF;
  ALTER ROLE lifeboat_backup LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;

  -- Where the cluster's files are, and what of its settings a backup depends on; who follows it.
  GRANT pg_read_all_settings, pg_read_all_stats TO lifeboat_backup;

  -- The frame of a local copy. The functions got other names with version 15.
  IF current_setting('server_version_num')::int >= 150000 THEN
    GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO lifeboat_backup;
  ELSE
    GRANT EXECUTE ON FUNCTION pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean) TO lifeboat_backup;
  END IF;

  -- lifeboat restore-point, which ends its segment so that the point reaches the archive; and backup, which writes one at the moment at which it
  -- looks at tables.
  GRANT EXECUTE ON FUNCTION pg_create_restore_point(text), pg_switch_wal() TO lifeboat_backup;

  -- lifeboat wal status: how much WAL waits to be archived.
  GRANT EXECUTE ON FUNCTION pg_ls_waldir(), pg_ls_archive_statusdir() TO lifeboat_backup;
END
$$;

\if :{?truth}
-- Every table, in every database, from version 14 on. Tables with row security stay closed: BYPASSRLS is not given here.
GRANT pg_read_all_data TO lifeboat_backup;
\endif
