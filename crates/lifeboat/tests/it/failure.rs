//! Everything that can be typed or configured wrongly: one line, a hint, the exit code.
