//! Translates HTTP into PostgreSQL writes and view reads.
//!
//! ```text
//!            observe: id, time-out, panics, headers, metrics, access log
//!               │
//!   request ────┴─► extractors ─► handler ─┬─ write ─► pool ─► PostgreSQL ─► X-Consistency-Token
//!                   (viewer, id,           │
//!                    list, body)           └─ read ──► wait for the token ─► Views ─► X-Feedmill-Time
//! ```
//!
//! It has no state of its own but caches that may be lost at any time, so any number of instances can run side by side.
//! Whatever goes wrong is answered with a [problem document](https://www.rfc-editor.org/rfc/rfc9457).

mod activity;
mod answer;
mod consistency;
mod cursor;
mod database;
mod health;
mod keys;
mod observe;
mod password;
mod problem;
mod request;
mod routes;
mod state;
mod viewer;

pub use consistency::CONSISTENCY_TOKEN;
pub use database::{Pool, PoolLimits, SessionError, Sessions, pool};
pub use health::{Alarm, Health, LogSize, Report, Slot, Stage, StageState, StandsStill, Status, Step};
pub use keys::{Keys, KeysError};
pub use routes::{app, starting};
pub use state::{Settings, State};
