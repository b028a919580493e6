//! The first copy and its hand-over to the stream.
