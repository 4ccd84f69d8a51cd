//! Restores into running servers, compared with their source; each line of correctness about bringing one back.
