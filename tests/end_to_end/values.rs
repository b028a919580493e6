//! Values at the edges of their types.
