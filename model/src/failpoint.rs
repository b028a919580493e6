//! Places in the code that tests name, to make the process end there, wait or go on.
//!
//! ```text
//!   FAILPOINTS="log_append_after=3*off->return"       the fourth time that the place is come to is the last
//!              "sink_write_before=sleep(200);dataflow_step_after=pause"
//! ```
//!
//! The actions are those of the crate `fail`; `return` is `kill -9`: the process gets no chance to tidy up, as in a
//! crash. Without the feature `failpoints` a place compiles to nothing, and nothing here is there.

use std::sync::Once;

use nix::sys::signal::{Signal, raise};

/// Reads the variable `FAILPOINTS`. To be called once, at the start of the process.
pub fn configure() {
    static DONE: Once = Once::new();
    // What was set up is taken down when the scenario is dropped, and it is to last as long as the process.
    DONE.call_once(|| std::mem::forget(fail::FailScenario::setup()));
}

/// Does what the variable `FAILPOINTS` says of this place.
pub fn reach(name: &str) {
    fail::fail_point!(name, |_| end(name));
}

/// Says where, so that a test knows which of several places it was, and ends the process.
fn end(name: &str) {
    eprintln!("failpoint {name}: kill -9");
    // It cannot be refused.
    let _ = raise(Signal::SIGKILL);
}
