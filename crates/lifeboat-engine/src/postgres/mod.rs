//! The PostgreSQL client: SQL, replication protocol, base backups.
