-- What artifacts.reference_query reads: one table, by the role that backs up. Run in the database that has it:
--
--   psql -d app -v table=public.artifacts -f references.sql
--   psql -d app -v table=public.artifacts -v role=lifeboat_dump -f references.sql

\set ON_ERROR_STOP on
\if :{?role}
\else
\set role lifeboat_backup
\endif

GRANT SELECT ON TABLE :table TO :"role";
