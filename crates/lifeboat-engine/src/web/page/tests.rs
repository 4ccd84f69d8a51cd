//! What is on the pages, and what does not get out of them.
