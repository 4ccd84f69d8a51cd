-- The role of logical copies (postgres.copy = "logical"), where a server allows nothing else: it reads every table and writes none.
--
-- For PostgreSQL 14 to 18; run once, as a superuser or as what a managed server has in its place, in the database that postgres.dsn names:
--
--   psql -d postgres -f dump.sql
--
-- and then set a password:   \password lifeboat_dump
--
-- Version 13 has no pg_read_all_data: grant USAGE on every schema and SELECT on all its tables and sequences, and the same as default
-- privileges, in every database. Passwords of roles are readable for superusers only: they come back without, and the backup says so.

\set ON_ERROR_STOP on

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lifeboat_dump') THEN
    CREATE ROLE lifeboat_dump;
  END IF;
  -- BYPASSRLS: pg_dump refuses tables with row security of which it would see a part.
  ALTER ROLE lifeboat_dump LOGIN BYPASSRLS NOREPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE;
  GRANT pg_read_all_settings, pg_read_all_data TO lifeboat_dump;
END
$$;
