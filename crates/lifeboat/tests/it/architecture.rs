//! The rooms are kept apart: what may depend on what.
