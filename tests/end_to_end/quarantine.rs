//! Rows that cannot be used.
