//! lifeboat demo.
