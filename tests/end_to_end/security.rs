//! Roles and certificates.
