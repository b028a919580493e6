//! A source that lacks something is refused with what mends it.
