//! Stores that say when they are at work, so that one that never ends is named.

use std::sync::Arc;

use feedmill_model::{Closed, HomeClosed, HomeSink, Position, RowSink, StoreError};

use super::stations::{Station, Stations};

/// Operations from which on a closed time may be a part of one that comes in several.
const PART_OF_MANY: usize = 65_536;

/// A store whose station is told when it begins and ends to apply a closed time.
pub struct Reporting<S: ?Sized> {
    store: Arc<S>,
    stations: Arc<Stations>,
    station: fn(&Stations) -> &Station,
}

impl<S: ?Sized> Reporting<S> {
    /// `store` reports to `station`.
    pub fn new(store: Arc<S>, stations: &Arc<Stations>, station: fn(&Stations) -> &Station) -> Self {
        Reporting { store, stations: Arc::clone(stations), station }
    }

    fn report<R>(&self, position: Position, apply: impl FnOnce(&S) -> R) -> R {
        let _at_work = self.station().at_work(format!("applying time {}", position.time));
        apply(&self.store)
    }

    fn station(&self) -> &Station {
        (self.station)(&self.stations)
    }
}

impl<R, S: RowSink<R> + ?Sized> RowSink<R> for Reporting<S> {
    fn progress(&self) -> Vec<Option<Position>> {
        self.store.progress()
    }

    fn apply(&self, closed: &Closed<R>) -> Result<(), StoreError> {
        let applied = self.report(closed.position, |store| store.apply(closed));
        if closed.ops.len() >= PART_OF_MANY {
            self.station().midway();
        }
        applied
    }
}

impl<S: HomeSink + ?Sized> HomeSink for Reporting<S> {
    fn progress(&self) -> Vec<Option<Position>> {
        self.store.progress()
    }

    fn is_to_be_filled(&self) -> bool {
        self.store.is_to_be_filled()
    }

    fn apply(&self, closed: &mut HomeClosed) -> Result<(), StoreError> {
        self.report(closed.position, |store| store.apply(closed))
    }
}
