//! Stores in servers of others, put through the suites on real ones, and what only they do.

mod cql;
mod cql_cases;
mod cql_reader;
mod cql_trends;
mod crashes;
mod elastic;
mod proxy;
mod secure;
