//! Speaks PostgreSQL and yields whole committed transactions in order.

pub mod disk;
pub mod postgres;
