//! Rows: values that were not sent, keys that change, tables and columns that change.
