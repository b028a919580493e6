//! A PostgreSQL server that a test owns: its settings, its end and its start.
