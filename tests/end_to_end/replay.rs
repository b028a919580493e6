//! Stores that are built again from the log.
