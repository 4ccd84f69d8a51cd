//! Damage to every kind of object, noticed by verify and by restore.
