//! Connections and servers that break off.
