//! Speaks PostgreSQL and yields whole committed transactions in order; speaks Kafka, where the change log is published.

pub mod disk;
pub mod kafka;
pub mod postgres;
