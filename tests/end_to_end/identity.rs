//! Another slot, another database, another history.
