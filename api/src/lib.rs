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
//! Streams (`live`) are told what comes; each is a reader like the others.
//!
//! It has no state of its own but caches that may be lost at any time, so any number of instances can run side by side.
//! Whatever goes wrong is answered with a [problem document](https://www.rfc-editor.org/rfc/rfc9457).

mod activity;
mod address;
mod answer;
mod conditional;
mod consistency;
mod cursor;
mod database;
mod erasure;
mod gates;
mod health;
mod keys;
mod limits;
mod live;
mod media;
mod observe;
mod openapi;
mod own_writes;
mod password;
mod problem;
mod reader;
mod replica;
mod request;
mod routes;
mod rules;
mod sessions;
mod state;
mod upkeep;
mod viewer;
mod write;

pub use address::network;
pub use consistency::CONSISTENCY_TOKEN;
pub use database::{Pool, PoolLimits, SessionError, Sessions, pool};
pub use health::{Alarm, Health, LogSize, Report, Slot, Stage, StageState, StandsStill, Status, Step};
pub use keys::{Keys, KeysError};
pub use limits::RateLimits;
pub use routes::{app, app_with_stored_timeline, starting, without_api};
pub use state::{Looks, Settings, State};
