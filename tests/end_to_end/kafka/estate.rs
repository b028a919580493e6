//! PostgreSQL, a capture, and Kafka.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use feedmill_connectors::kafka::{BatchReader, Format, Hydration, KafkaLog, Layout, Share, Times, Topics};
use feedmill_ingest::{Log, Options};
use feedmill_model::{Batch, Change, Key, Lsn, Position, Row, Time};
use feedmill_test_servers::Kafka;

use super::plain;
use crate::postgres::Postgres;
use crate::system::System;

/// How long a batch that is there may take to be read.
const READ_MAX: Duration = Duration::from_secs(30);

/// A system that publishes.
pub struct Estate {
    pub postgres: Postgres,
    pub capture: System,
    /// Where to.
    pub to: KafkaLog,
}

/// Topics that no other test has.
pub fn log_in(kafka: &Kafka, layout: Layout) -> KafkaLog {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let servers = format!("kafka://{}", kafka.bootstrap()).parse().unwrap();
    let prefix = format!("test{}-{number}", std::process::id());
    KafkaLog { servers, prefix, layout, format: Format::Json, registry: None }
}

/// A process that captures `postgres` and publishes to `to`, not yet started.
pub fn capture(postgres: &Postgres, to: &KafkaLog, settings: &[&str]) -> System {
    let mut capture = System::new(settings);
    capture.mode = "capture";
    capture.use_database(postgres);
    let (publish, layout) = (format!("kafka://{}", to.servers), format!("{:?}", to.layout).to_lowercase());
    let more =
        ["--publish", &publish, "--topic-prefix", &to.prefix, "--topic-layout", &layout, "--topic-partitions", "3"];
    capture.settings.extend(more.map(str::to_owned));
    if let Some(registry) = &to.registry {
        let format = format!("{:?}", to.format).to_lowercase();
        capture.settings.extend(["--registry", &registry.to_string(), "--topic-format", &format].map(str::to_owned));
    }
    capture
}

impl Estate {
    /// One that runs.
    pub async fn start(kafka: &Kafka, layout: Layout, settings: &[&str]) -> Estate {
        let mut estate = Estate::new(kafka, layout, settings).await;
        estate.capture.go().await;
        estate
    }

    /// One of which PostgreSQL runs.
    pub async fn new(kafka: &Kafka, layout: Layout, settings: &[&str]) -> Estate {
        // Little memory for decoding, so that large transactions are streamed.
        let postgres = Postgres::new(&["logical_decoding_work_mem = 64kB"]).await;
        let to = log_in(kafka, layout);
        let capture = capture(&postgres, &to, settings);
        Estate { postgres, capture, to }
    }

    /// Stops the capture, which publishes to other topics at the next start, and so begins with the rows as they are.
    pub async fn anew(&mut self, kafka: &Kafka) {
        self.published().await;
        self.capture.interrupt();
        self.to = log_in(kafka, self.to.layout);
        let at = self.capture.settings.iter().position(|setting| setting == "--topic-prefix").unwrap();
        self.to.prefix.clone_into(&mut self.capture.settings[at + 1]);
    }

    /// Waits until everything that was committed is published.
    pub async fn published(&self) {
        let sql = self.postgres.sql().await;
        let end: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
        let end: Lsn = end.parse().unwrap();
        self.capture.until("all is published", async |capture| stage_lsn(capture, "kafka").await >= Some(end)).await;
    }

    /// Stops the capture. Everything that is in Kafka equals the change log: the batches, one by one, and the rows as of
    /// several times; and there is nothing else.
    pub async fn published_is_the_log(&mut self) {
        self.published().await;
        let (status, _) = self.capture.interrupt();
        assert!(status.success(), "{status}\n{}", self.capture.log());
        let (to, log) = (self.to.clone(), self.capture.data().join("log"));
        tokio::task::spawn_blocking(move || compare(&to, &log)).await.unwrap();
    }
}

/// Where a stage stands, as the process says.
pub async fn stage_lsn(system: &System, name: &str) -> Option<Lsn> {
    let health = system.get("/health", None).await.body;
    health["stages"].as_array()?.iter().find(|stage| stage["name"] == name)?["lsn"].as_str()?.parse().ok()
}

/// A batch whatever the pieces in which it came.
#[derive(Debug, Default, PartialEq)]
pub struct Whole {
    position: Position,
    floor: Option<i64>,
    changes: BTreeMap<Key, Change>,
}

/// Puts pieces together, up to the batch of a time.
fn whole(until: Time, mut next: impl FnMut() -> Batch) -> Vec<Whole> {
    let mut batches: Vec<Whole> = Vec::new();
    let mut is_begun = false;
    loop {
        let batch = next();
        if !is_begun {
            batches.push(Whole { position: batch.position, floor: batch.floor, changes: BTreeMap::new() });
        }
        let whole = batches.last_mut().unwrap();
        assert_eq!((whole.position, whole.floor), (batch.position, batch.floor));
        for change in batch.changes {
            let Some(row) = change.new.as_ref().or(change.old.as_ref()) else { continue };
            assert_eq!(whole.changes.insert(row.key(), change), None, "a key has one change in a batch");
        }
        is_begun = !batch.last;
        if batch.last && batch.position.time == until {
            return batches;
        }
    }
}

/// The batches in Kafka after a time, up to another.
pub fn batches(to: &KafkaLog, share: Share, after: Time, until: Time) -> Vec<Whole> {
    let mut reader = BatchReader::open(to, share, after).unwrap();
    whole(until, || reader.next(READ_MAX).unwrap().expect("it is there"))
}

/// The rows in Kafka as of a time.
pub fn rows(to: &KafkaLog, share: Share, time: Time) -> BTreeMap<Key, Row> {
    let mut rows = BTreeMap::new();
    for slice in Hydration::begin(to, share, time).unwrap() {
        for row in slice.unwrap() {
            let key = row.key();
            assert!(rows.insert(key, row).is_none(), "{key:?} is there once");
        }
    }
    rows
}

fn compare(to: &KafkaLog, log: &Path) {
    let log = Log::open(log, Options::default()).unwrap();
    let times = plain::records(&to.servers.to_string(), &Topics::of(to).times());
    let first: Time = times[0].value.as_ref().unwrap()["time"].as_u64().unwrap();
    let newest = Times::of(to).unwrap().newest().unwrap();
    let mut reader = log.reader(first).unwrap();
    let in_log = whole(newest.time, || (*reader.next(READ_MAX).unwrap().expect("it is there")).clone());
    // One reader has it all, and so have three, each its own. They wait for Kafka most of the time.
    let (in_kafka, shares) = std::thread::scope(|scope| {
        let all = scope.spawn(|| batches(to, Share::ALL, first, newest.time));
        let share = |index| scope.spawn(move || batches(to, Share { index, of: 3 }, first, newest.time));
        let shares = (0..3).map(share).collect::<Vec<_>>().into_iter().map(|share| share.join().unwrap());
        let shares = shares.collect::<Vec<Vec<Whole>>>();
        (all.join().unwrap(), shares)
    });
    assert_eq!(in_kafka.len(), in_log.len());
    for (in_kafka, in_log) in in_kafka.iter().zip(&in_log) {
        assert_eq!(in_kafka, in_log);
    }
    for (number, in_log) in in_log.iter().enumerate() {
        let mut changes = BTreeMap::new();
        for share in &shares {
            assert_eq!((share[number].position, share[number].floor), (in_log.position, in_log.floor));
            for (key, change) in &share[number].changes {
                assert_eq!(changes.insert(*key, change.clone()), None, "{key:?} is read by one");
            }
        }
        assert_eq!(changes, in_log.changes);
    }
    // Nothing else is there, and each record of `times` closes one batch or says that it does not.
    let changes: usize = in_log.iter().map(|batch| batch.changes.len()).sum();
    let topics = Topics::of(to);
    let records = |topic: &str| plain::count(&to.servers.to_string(), topic);
    assert_eq!(topics.changes().map(records).sum::<usize>(), changes);
    let closing = times.iter().filter(|record| record.value.as_ref().unwrap()["last"] == true).count();
    assert_eq!(closing, in_log.len() + 1);
    // The rows as of the beginning, of the end, and of what lies between.
    let asked = [first, in_log[in_log.len() / 3].position.time, in_log[in_log.len() / 2].position.time, newest.time];
    let states = std::thread::scope(|scope| {
        let state = |(number, time)| {
            scope.spawn(move || match number {
                1 => (0..3).flat_map(|index| rows(to, Share { index, of: 3 }, time)).collect(),
                _ => rows(to, Share::ALL, time),
            })
        };
        let states = asked.into_iter().enumerate().map(state).collect::<Vec<_>>();
        states.into_iter().map(|state| state.join().unwrap()).collect::<Vec<BTreeMap<Key, Row>>>()
    });
    for (time, in_kafka) in asked.into_iter().zip(states) {
        let in_log: BTreeMap<Key, Row> =
            log.state_at(time).unwrap().flat_map(Result::unwrap).map(|row| (row.key(), row)).collect();
        assert_eq!(in_kafka, in_log, "the rows as of time {time}");
    }
}
