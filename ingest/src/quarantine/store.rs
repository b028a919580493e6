//! Where rows in quarantine lie, and what a person can do with them.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::atomic::Ordering;

use feedmill_connectors::postgres::{Operation, RowChange, Transaction, Unusable};
use feedmill_model::{Key, Position, Relation, Timestamp};
use fjall::{OwnedWriteBatch, UserValue};

use super::{Effect, QuarantineId, Quarantined, ahead, is_ahead, last_id_at, of_the_future};
use crate::error::storage;
use crate::key::{RowKey, decode, decode_row, encode, last_key, row_key};
use crate::log::Shared;
use crate::{Log, LogError, LogState, clock};

/// What became of a row that was tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retried {
    /// It is a row like any other now.
    Back,
    /// It still cannot be used, and why.
    Still(String),
    /// There is no such row in quarantine.
    Unknown,
}

impl Log {
    /// How many rows are in quarantine.
    pub fn quarantine_len(&self) -> u64 {
        self.shared.quarantined.load(Ordering::Relaxed)
    }

    /// At most `limit` rows in quarantine, in the order of their ids, after `after`.
    pub fn quarantine(
        &self,
        after: Option<QuarantineId>,
        limit: usize,
    ) -> Result<Vec<(QuarantineId, Quarantined)>, LogError> {
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.to_bytes()));
        let entries = self.shared.quarantine.range::<Vec<u8>, _>((from, Bound::Unbounded)).take(limit);
        let read = |entry: fjall::Guard| {
            let (id, value) = entry.into_inner().map_err(storage("read the quarantine of"))?;
            Ok((QuarantineId::from_bytes(&id)?, decoded(&value)?))
        };
        entries.map(read).collect()
    }

    /// A row in quarantine.
    pub fn quarantined(&self, id: QuarantineId) -> Result<Option<Quarantined>, LogError> {
        self.shared.quarantined_at(&id.to_bytes())
    }

    /// Tries rows again: those that can be used by now come back, as one batch at a new time. `now_ms` is this machine's
    /// clock, in milliseconds since 1970.
    pub fn retry_quarantined(
        &self,
        ids: &[QuarantineId],
        now_ms: u64,
    ) -> Result<Vec<(QuarantineId, Retried)>, LogError> {
        let shared = &self.shared;
        let _turn = shared.turn()?;
        let before = shared.current.lock().clone();
        let last = before.ready()?;
        let time = clock::mint(last.time, now_ms, shared.ahead_ms.load(Ordering::Relaxed), last.lsn)?;
        let (mut outcomes, mut changes) = (Vec::with_capacity(ids.len()), Vec::new());
        for id in ids {
            let outcome = match shared.quarantined_at(&id.to_bytes())? {
                None => Retried::Unknown,
                Some(entry) => match entry.readable {
                    None => Retried::Still(entry.row.reason),
                    Some(row) => match ahead(&row, time) {
                        Some(reason) => Retried::Still(reason),
                        None => {
                            changes.push(RowChange::Insert(row));
                            Retried::Back
                        }
                    },
                },
            };
            outcomes.push((*id, outcome));
        }
        if !changes.is_empty() {
            // The source's log is covered as far as it was.
            let transaction = Transaction { end_lsn: last.lsn, committed_at: 0, changes: changes.into() };
            shared.append_small(&[transaction], Position { time, lsn: last.lsn }, before)?;
        }
        Ok(outcomes)
    }

    /// Drops a row from the quarantine: it stays out of every view until the source changes it. `false` if it was not
    /// there.
    pub fn drop_quarantined(&self, id: QuarantineId) -> Result<bool, LogError> {
        let shared = &self.shared;
        let _turn = shared.turn()?;
        let mut write = shared.durable_write();
        let count = shared.write_effects(&mut write, &[Effect { id: id.to_bytes(), entry: None }])?;
        let was_there = count.grown < 0;
        if was_there {
            write.commit().map_err(storage("drop a row in quarantine from"))?;
            shared.count_quarantined(&count);
        }
        Ok(was_there)
    }

    /// Takes rows of the first copy that cannot be read.
    pub fn copy_unusable(&self, rows: Vec<Unusable>) -> Result<(), LogError> {
        let shared = &self.shared;
        if shared.current.lock().state != LogState::Copying {
            return Err(LogError::NotCopying);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let _turn = shared.turn()?;
        let mut write = shared.db.batch();
        let first = self.quarantine_len();
        let effects: Vec<Effect> = (first..).zip(rows).map(|(number, row)| Effect::copied(row, number)).collect();
        let count = shared.write_effects(&mut write, &effects)?;
        write.commit().map_err(storage("write rows in quarantine to"))?;
        shared.count_quarantined(&count);
        if first < TOLD_MAX as u64 {
            count.tell();
        }
        Ok(())
    }
}

impl Effect {
    /// Sets aside a row of a copy; `number` names it if it has no readable key.
    fn copied(row: Unusable, number: u64) -> Self {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let id = row.key.map_or(QuarantineId::Number(0, number), QuarantineId::Key).to_bytes();
        Effect { id, entry: Some(Box::new(Quarantined { row, readable: None, position: Position::default() })) }
    }
}

/// How the quarantine changes with a write.
#[derive(Default)]
pub(crate) struct Count {
    grown: i64,
    kinds: Vec<&'static str>,
    /// What is said of the first rows.
    told: Vec<String>,
}

/// Rows of a write of which each is told.
const TOLD_MAX: usize = 5;

impl Count {
    /// Adds what another write has put into quarantine.
    pub fn add(&mut self, other: Count) {
        self.kinds.extend(other.kinds);
        self.told.extend(other.told);
        self.told.truncate(TOLD_MAX);
    }

    /// Says in the log what went into quarantine: the first rows, and how many there are.
    pub fn tell(&self) {
        for told in &self.told {
            tracing::error!("{told}");
        }
        if self.kinds.len() > self.told.len() {
            let more = self.kinds.len() - self.told.len();
            tracing::error!("{more} more rows went into quarantine with them: `feedmill quarantine list` tells which");
        }
    }
}

impl Shared {
    /// Whether there is anything in quarantine.
    pub fn has_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Relaxed) > 0
    }

    /// The row in quarantine whose entry lies at `id`.
    pub fn quarantined_at(&self, id: &[u8]) -> Result<Option<Quarantined>, LogError> {
        let entry = self.quarantine.get(id).map_err(storage("read the quarantine of"))?;
        entry.map(|entry| decoded(&entry)).transpose()
    }

    /// Where the entries of rows with keys of a range lie.
    pub fn quarantined_between(&self, first: &RowKey, last: &RowKey) -> Result<Vec<Vec<u8>>, LogError> {
        let ids = self.quarantine.range(*first..=*last).map(|entry| entry.key().map(|id| id.to_vec()));
        ids.collect::<Result<_, _>>().map_err(storage("read the quarantine of"))
    }

    /// Adds effects to a write. After it is committed the count is to be given to [`Self::count_quarantined`].
    pub fn write_effects(&self, write: &mut OwnedWriteBatch, effects: &[Effect]) -> Result<Count, LogError> {
        let mut count = Count::default();
        let mut known: HashMap<&[u8], bool> = HashMap::new();
        for Effect { id, entry } in effects {
            let was = match known.get(id.as_slice()) {
                Some(was) => *was,
                None => self.quarantine.contains_key(id).map_err(storage("read the quarantine of"))?,
            };
            known.insert(id, entry.is_some());
            count.grown += i64::from(entry.is_some()) - i64::from(was);
            match entry {
                Some(entry) => {
                    count.kinds.push(entry.kind());
                    if count.told.len() < TOLD_MAX {
                        count.told.push(format!(
                            "a row of {} went into quarantine: {}. `feedmill quarantine show {}` tells more",
                            entry.row.relation.table(),
                            entry.row.reason,
                            QuarantineId::from_bytes(id)?,
                        ));
                    }
                    write.insert(&self.quarantine, id.clone(), encode(entry, "a row in quarantine")?);
                }
                None => write.remove(&self.quarantine, id.clone()),
            }
        }
        Ok(count)
    }

    /// The write with these effects is committed.
    pub fn count_quarantined(&self, count: &Count) {
        let rows = self.quarantined.load(Ordering::Relaxed).saturating_add_signed(count.grown);
        self.set_quarantined(rows);
        for kind in &count.kinds {
            metrics::counter!("feedmill_quarantined_total", "reason" => *kind).increment(1);
        }
    }

    /// Counts what is there, when the log is opened or emptied.
    pub fn recount_quarantined(&self) -> Result<(), LogError> {
        let mut rows = 0;
        for entry in self.quarantine.iter() {
            entry.key().map_err(storage("read the quarantine of"))?;
            rows += 1;
        }
        self.set_quarantined(rows);
        Ok(())
    }

    fn set_quarantined(&self, rows: u64) {
        self.quarantined.store(rows, Ordering::Relaxed);
        metrics::gauge!("feedmill_quarantine_rows").set(rows as f64);
    }

    /// At the end of a copy at `position`: takes those of its rows that lie in the future out of the row store. When
    /// the latest `created_at` of all is not in the future, only ids can be.
    pub fn set_aside_copied(
        &self,
        write: &mut OwnedWriteBatch,
        position: Position,
        latest: Timestamp,
    ) -> Result<Count, LogError> {
        let mut effects = Vec::new();
        for relation in [Relation::Tweets, Relation::Retweets] {
            let first = if is_ahead(latest, position.time) { i64::MIN } else { last_id_at(position.time) };
            let first = row_key(&Key { relation, first, second: i64::MIN });
            for entry in self.rows.range(first..=last_key(relation)) {
                let row = decode_row(&entry.value().map_err(storage("read the rows of"))?, relation)?;
                if let Some(reason) = ahead(&row, position.time) {
                    write.remove(&self.rows, row_key(&row.key()));
                    let id = QuarantineId::Key(row.key()).to_bytes();
                    let entry = of_the_future(row, Operation::Copy, reason, position);
                    effects.push(Effect { id, entry: Some(Box::new(entry)) });
                }
            }
        }
        self.write_effects(write, &effects)
    }
}

fn decoded(value: &UserValue) -> Result<Quarantined, LogError> {
    decode(value, || "a row in quarantine".to_owned())
}
