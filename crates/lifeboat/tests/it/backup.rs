//! Backups of real servers, every way of copying, under load; each line of correctness about taking one.
