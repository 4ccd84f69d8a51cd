//! What `wal fetch` answers.
