//! Coming back: what is served at once, and what is caught up with.
