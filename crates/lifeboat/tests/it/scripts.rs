//! backup.sh and restore.sh, as runbooks call them.
