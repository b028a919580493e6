//! How much may be under way at a time: what is too much is turned away, before it makes all else slow.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::Class;
use crate::problem::{Kind, Problem};

/// Exports at a time: of the connections to PostgreSQL they take no more.
const EXPORTS_MAX: usize = 4;

/// How many requests of a class may be under way.
pub(crate) struct Gate {
    class: &'static str,
    max: usize,
    places: Arc<Semaphore>,
}

impl Gate {
    fn new(class: &'static str, max: usize) -> Self {
        let max = max.max(1);
        metrics::counter!("feedmill_http_shed_total", "class" => class).increment(0);
        Gate { class, max, places: Arc::new(Semaphore::new(max)) }
    }

    /// Takes a place; it is given back when this is dropped.
    pub fn enter(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            metrics::counter!("feedmill_http_shed_total", "class" => self.class).increment(1);
            Kind::Overloaded.because("Too many requests of this kind are under way. Try again in a moment.")
        })
    }
}

/// Requests under way, by class: none can take the places of another.
pub(crate) struct Gates {
    read: Gate,
    write: Gate,
    search: Gate,
    sign_in: Gate,
    /// It is entered by the handler, because an export goes on when its answer has begun.
    pub export: Gate,
}

impl Gates {
    /// At most so many reads; of what costs more, fewer.
    pub fn new(reads_max: usize) -> Self {
        Gates {
            read: Gate::new("read", reads_max),
            write: Gate::new("write", reads_max / 2),
            search: Gate::new("search", reads_max / 4),
            sign_in: Gate::new("sign-in", reads_max / 4),
            export: Gate::new("export", EXPORTS_MAX),
        }
    }

    /// Where a request of a class has to pass.
    pub fn of(&self, class: Class) -> Option<&Gate> {
        match class {
            Class::Login | Class::Register => Some(&self.sign_in),
            Class::Write => Some(&self.write),
            Class::Read => Some(&self.read),
            Class::Search => Some(&self.search),
            Class::Export | Class::Stream => None,
        }
    }

    /// Tells the metrics how many requests are under way.
    pub fn gauge(&self) {
        for gate in [&self.read, &self.write, &self.search, &self.sign_in, &self.export] {
            let under_way = gate.max.saturating_sub(gate.places.available_permits());
            metrics::gauge!("feedmill_http_in_flight", "class" => gate.class).set(under_way as f64);
        }
    }
}
