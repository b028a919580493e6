//! Which stage stands still, and since when.
