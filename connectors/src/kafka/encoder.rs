//! Writes the records of batches, ahead of who sends them.
//!
//! ```text
//!   a thread that reads batches            a bounded queue               the thread that sends
//!   Encoder::write ─► records, in blocks ─► block, block, … the last ─► Publisher::publish: one Kafka transaction
//!        ▲                                  (with records of `times`)         │
//!        └────────────── blocks that were sent, to be filled again ◄──────────┘
//! ```
//!
//! To write envelopes takes nearly as long as to hand them over, and brokers take a while to commit: so the one is done while
//! the other waits. What is written depends on the batches and on where `times` ended when the encoder began, and on nothing
//! else: it does not know whether any of it was sent. Whoever sends fails by dropping its end of the queue, and the encoder
//! ends with it; the next pair begins where `times` ends then. An encoder that fails has not given the last block of its
//! transaction, and what has no last block is never committed.
//!
//! In memory are at most [`AHEAD`] blocks and the two that are in hand, each of [`BLOCK_BYTES`] and the records of a change.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use feedmill_model::{Change, Position, Relation, Row, SourceId, Time};

use super::block::{Block, End, Tag};
use super::envelope::{Of, Order};
use super::error::KafkaError;
use super::registry;
use super::times::TimesRecord;
use super::topics::{Format, KafkaLog, Topics};
use super::values::{Form, Values};

/// Blocks that wait to be sent: about the records of a large transaction, so that the next one is written when one is
/// committed.
const AHEAD: usize = 32;
/// A block of so many bytes is full.
const BLOCK_BYTES: usize = 512 << 10;

/// What batches are of.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The source.
    pub source: &'a SourceId,
    /// Since when its positions are of the present history.
    pub history: Time,
    /// The greatest id that an entry of it has had which a home timeline can hold.
    pub greatest_entry: i64,
}

/// A batch, or a piece of one; or rows of the first state.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Of the batch.
    pub position: Position,
    /// Of the batch.
    pub floor: Option<i64>,
    /// What is in it.
    pub content: Content<'a>,
    /// Whether nothing more of this time comes.
    pub last: bool,
}

/// What is published.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Changes of a batch.
    Changes(&'a [Change]),
    /// Rows of the first state, which begins the log.
    Rows(&'a [Row]),
}

impl Content<'_> {
    fn len(&self) -> u64 {
        match self {
            Content::Changes(changes) => changes.len() as u64,
            Content::Rows(rows) => rows.len() as u64,
        }
    }
}

/// Writes what an [`Encoded`] gives.
pub struct Encoder {
    topics: Topics,
    servers: String,
    database: String,
    format: Format,
    form: Form,
    /// What `times` ends with when all is committed that was written.
    at: Option<TimesRecord>,
    /// How many changes of each relation were written of a batch that did not end yet.
    orders: Orders,
    output: Output,
}

/// What an [`Encoder`] has written.
pub struct Encoded {
    from: Receiver<Block>,
    sent: SyncSender<Block>,
}

/// What comes next of what was written.
pub(super) enum Next {
    /// A block.
    Block(Block),
    /// Nothing yet.
    Nothing,
    /// Nothing any more: the encoder is gone.
    Ended,
}

/// Where blocks go, and the one that is being filled.
struct Output {
    block: Block,
    to: SyncSender<Block>,
    sent: Receiver<Block>,
}

/// A number for each relation.
type Orders = [u64; Relation::ALL.len()];

/// Whoever sends is gone, so nothing is to be written any more; or something cannot be written.
enum Stop {
    Gone,
    Unwritable(serde_json::Error),
}

impl From<serde_json::Error> for Stop {
    fn from(error: serde_json::Error) -> Self {
        Stop::Unwritable(error)
    }
}

impl Encoder {
    /// One that goes on after `at`, which `times` ends with, and what it will have written. The schemas of what is Avro are
    /// registered here.
    pub fn new(log: &KafkaLog, database: &str, at: Option<&TimesRecord>) -> Result<(Encoder, Encoded), KafkaError> {
        let form = match (log.format, &log.registry) {
            (Format::Json, _) => Form::Json,
            (Format::Avro, Some(address)) => Form::Avro(registry::register(log, address)?),
            (Format::Avro, None) => return Err(KafkaError::NoRegistry { topic: log.prefix.clone() }),
        };
        let (to, from) = sync_channel(AHEAD);
        // There is room for all that there are.
        let (back, sent) = sync_channel(AHEAD + 2);
        let encoder = Encoder {
            topics: Topics::of(log),
            servers: log.servers.to_string(),
            database: database.to_owned(),
            format: log.format,
            form,
            at: at.cloned(),
            orders: Orders::default(),
            output: Output { block: Block::default(), to, sent },
        };
        Ok((encoder, Encoded { from, sent: back }))
    }

    /// These changes, the first ones of the batch of which `at` is a part, were published by a predecessor.
    pub fn pass(&mut self, changes: &[Change]) {
        for relation in changes.iter().filter_map(relation_of) {
            count(&mut self.orders, relation);
        }
    }

    /// Writes parts, in their order, as one Kafka transaction; they must follow those before. Waits while too much is ahead.
    /// `false` when whoever sends is gone.
    pub fn write(&mut self, origin: Origin<'_>, parts: &[Part<'_>]) -> Result<bool, KafkaError> {
        match self.write_transaction(origin, parts) {
            Ok(()) => Ok(true),
            Err(Stop::Gone) => Ok(false),
            Err(Stop::Unwritable(error)) => Err(KafkaError::Refused {
                tried: "write a record".to_owned(),
                servers: self.servers.clone(),
                why: format!("it cannot be JSON: {error}"),
            }),
        }
    }

    fn write_transaction(&mut self, origin: Origin<'_>, parts: &[Part<'_>]) -> Result<(), Stop> {
        let mut closing: Vec<TimesRecord> = Vec::new();
        for part in parts {
            let goes_on = closing.last().is_some_and(|record| record.time == part.position.time);
            if !goes_on {
                closing.push(following(closing.last().or(self.at.as_ref()), origin, part, self.format));
            }
            let number = closing.len() - 1;
            let Some(record) = closing.last_mut() else { continue };
            match part.content {
                Content::Rows(rows) => self.write_rows(part, rows, number)?,
                Content::Changes(changes) => self.write_changes(part, changes, number, record.done)?,
            }
            record.done += part.content.len();
            record.last = part.last;
            if part.last {
                self.orders = Orders::default();
            }
        }
        self.at = closing.last().cloned().or(self.at.take());
        let changes = parts.iter().map(|part| part.content.len()).sum();
        self.output.block.end = Some(End { closing, changes });
        self.output.give()
    }

    /// Each row once, into its row topic.
    fn write_rows(&mut self, part: &Part<'_>, rows: &[Row], number: usize) -> Result<(), Stop> {
        let Encoder { topics, database, output, form, .. } = self;
        let mut values = Values::new(form, Of { prefix: topics.prefix(), database, position: part.position }, true);
        for row in rows {
            let relation = row.relation();
            let block = &mut output.block;
            let table = topics.table_of_key(relation);
            let topic = topics.numbers(relation).1;
            let key = block.append(|bytes| values.append_key(bytes, topic, &row.key(), table))?;
            let value = block.append(|bytes| values.append_row(bytes, topic, row))?;
            block.push(Tag::new(number, topic), part.position.time, key, Some(value));
            output.give_if_full()?;
        }
        Ok(())
    }

    /// Each change into its change topic, and the row as it is then into its row topic; `done` of the batch came before.
    fn write_changes(&mut self, part: &Part<'_>, changes: &[Change], number: usize, done: u64) -> Result<(), Stop> {
        let Encoder { topics, database, output, orders, form, .. } = self;
        let mut values = Values::new(form, Of { prefix: topics.prefix(), database, position: part.position }, false);
        for (total, change) in (done + 1..).zip(changes) {
            let Some(row) = change.new.as_ref().or(change.old.as_ref()) else { continue };
            let relation = row.relation();
            let order = Order { total, data_collection: count(orders, relation) };
            let (into_changes, into_rows) = topics.numbers(relation);
            let block = &mut output.block;
            let table = topics.table_of_key(relation);
            let key = block.append(|bytes| values.append_key(bytes, into_changes, &row.key(), table))?;
            let mut after = None;
            let value = block.append(|bytes| {
                after = values.append_change(bytes, into_changes, relation, change, order)?;
                Ok::<_, serde_json::Error>(())
            })?;
            block.push(Tag::new(number, into_changes), part.position.time, key.clone(), Some(value));
            let key = match values.shares_keys(into_changes, into_rows) {
                true => key,
                false => block.append(|bytes| values.append_key(bytes, into_rows, &row.key(), table))?,
            };
            let row = match after {
                Some(after) => Some(block.append(|bytes| values.append_row_again(bytes, into_rows, relation, after))?),
                None => None,
            };
            block.push(Tag::new(number, into_rows), part.position.time, key, row);
            output.give_if_full()?;
        }
        Ok(())
    }
}

impl Output {
    fn give_if_full(&mut self) -> Result<(), Stop> {
        if self.block.bytes() < BLOCK_BYTES { Ok(()) } else { self.give() }
    }

    /// Gives the block to who sends, and begins another.
    fn give(&mut self) -> Result<(), Stop> {
        let next = self.sent.try_recv().unwrap_or_default();
        let block = std::mem::replace(&mut self.block, next);
        self.to.send(block).map_err(|_| Stop::Gone)
    }
}

impl Encoded {
    /// The next block, if there is one within `limit`.
    pub(super) fn next(&self, limit: Duration) -> Next {
        match self.from.recv_timeout(limit) {
            Ok(block) => Next::Block(block),
            Err(RecvTimeoutError::Timeout) => Next::Nothing,
            Err(RecvTimeoutError::Disconnected) => Next::Ended,
        }
    }

    /// A block was sent, and can be filled again.
    pub(super) fn is_sent(&self, mut block: Block) {
        block.clear();
        // An encoder that is gone needs none.
        let _ = self.sent.try_send(block);
    }
}

/// The record of a part that follows `before`, of which nothing is written yet but what `before` tells.
fn following(before: Option<&TimesRecord>, origin: Origin<'_>, part: &Part<'_>, format: Format) -> TimesRecord {
    let unfinished = before.filter(|before| !before.last);
    TimesRecord {
        time: part.position.time,
        previous: unfinished.map_or(before.map(|before| before.time), |unfinished| unfinished.previous),
        lsn: part.position.lsn,
        source: origin.source.into(),
        history: origin.history,
        snapshot: matches!(part.content, Content::Rows(_)),
        format,
        greatest_entry: origin.greatest_entry,
        floor: part.floor,
        done: unfinished.map_or(0, |unfinished| unfinished.done),
        last: false,
        partitions: Vec::new(),
    }
}

fn relation_of(change: &Change) -> Option<Relation> {
    change.new.as_ref().or(change.old.as_ref()).map(Row::relation)
}

/// Counts one more of a relation, and says which one it is.
fn count(orders: &mut Orders, relation: Relation) -> u64 {
    let number = Relation::ALL.iter().position(|known| *known == relation);
    let Some(order) = number.and_then(|number| orders.get_mut(number)) else { return 0 };
    *order += 1;
    *order
}
