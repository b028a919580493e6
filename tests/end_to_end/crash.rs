//! Processes that are killed at any point.
