//! Stores on servers, put through the suites on real ones, and what only they do.

mod elastic;
