//! The in-toto statements that lifeboat signs: what is said of a backup, of an artifact.
