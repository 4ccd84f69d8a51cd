-- The role that looks whether a restored server is right: it reads the one table that says which artifacts there must be, and nothing else.
--
-- Made in production, so that every backup has it; for PostgreSQL 13 to 18, as a superuser, in the database that has the table:
--
--   psql -d app -v table=public.artifacts -f restorer-check.sql
--
-- It has no password, here and in the copy: give it one where it is used (\password lifeboat_check), or let pg_hba.conf let it in by peer.

\set ON_ERROR_STOP on

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lifeboat_check') THEN
    CREATE ROLE lifeboat_check;
  END IF;
  ALTER ROLE lifeboat_check LOGIN NOREPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS CONNECTION LIMIT 2;
END
$$;

ALTER ROLE lifeboat_check SET default_transaction_read_only = on;
GRANT SELECT ON TABLE :table TO lifeboat_check;
