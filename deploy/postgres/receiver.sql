-- The role of lifeboat wal receive: it streams WAL through a physical slot.
--
-- For PostgreSQL 13 to 18; run once, as a superuser, in the database that postgres.dsn names:
--
--   psql -d postgres -f receiver.sql                  wal.mode = "stream", or "sync" with on_fallout = "block"
--   psql -d postgres -v degrade=1 -f receiver.sql     also on_fallout = "degrade", from version 15
--
-- and then set a password:   \password lifeboat_receiver
--
-- With degrade it may change one setting, synchronous_standby_names, and have the server read its configuration. Before version 15 nobody
-- but a superuser may: there use on_fallout = "block".

\set ON_ERROR_STOP on

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lifeboat_receiver') THEN
    CREATE ROLE lifeboat_receiver;
  END IF;
  ALTER ROLE lifeboat_receiver LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
  GRANT pg_read_all_settings, pg_read_all_stats TO lifeboat_receiver;
END
$$;

\if :{?degrade}
GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO lifeboat_receiver;
GRANT EXECUTE ON FUNCTION pg_reload_conf() TO lifeboat_receiver;
\endif
