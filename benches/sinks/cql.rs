//! Rows a second into a CQL cluster.
//!
//! ```text
//!   edges of accounts ─► closed times ─► CqlIndex: lists and their parts, batches, progress ─┐
//!                    └─► batches of one partition, as many on their way ──────────────────────┴─► rows a second
//! ```
//!
//! Both write the same keys and values in batches of one size into tables of one shape, of one node.

use std::sync::Arc;
use std::time::Instant;

use feedmill_model::{Closed, Keyed, Lsn, Op, Parameters, Position, RowSink, SourceId, Time, ViewRow};
use feedmill_sinks::cql::{CqlSettings, CqlStores};
use feedmill_test_servers::Cassandra;
use futures::{StreamExt, TryStreamExt, stream};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;

use super::{Args, pairs};

/// Accounts that are followed.
const ACCOUNTS: i64 = 200;
/// Rows of a closed time.
const AT_ONCE: i64 = 10_000;
/// Rows of a batch, and batches on their way, as in the store.
const BATCH_ROWS: usize = 50;
const CONCURRENCY: usize = 256;

fn row(number: i64) -> ViewRow {
    ViewRow::Follower { user: number % ACCOUNTS, at: number, follower: number }
}

/// The rows of a run, as closed times.
fn closed(args: &Args) -> Vec<Closed<ViewRow>> {
    let numbers: Vec<i64> = (0..args.rows).collect();
    let close = |(number, rows): (usize, &[i64])| {
        let mut ops: Vec<_> = rows.iter().map(|number| row(*number)).map(|row| (row.shard(), Op::Put(row))).collect();
        ops.sort_by_key(|(shard, _)| *shard);
        let position = Position { time: 1 + number as Time, lsn: Lsn(0) };
        Closed { position, shards: u64::MAX, loading: false, ops }
    };
    numbers.chunks(AT_ONCE as usize).enumerate().map(close).collect()
}

async fn store(args: &Args, address: &str, number: u32) -> anyhow::Result<f64> {
    let keyspace = format!("store_{number}");
    let settings = CqlSettings { nodes: vec![address.to_owned()], keyspace, ..CqlSettings::default() };
    let source = SourceId { system: 1, timeline: 1, slot: "bench".to_owned() };
    let stores = CqlStores::open(settings, &source, Parameters::default()).await?;
    let closed = closed(args);
    let index = Arc::clone(&stores.index);
    tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        for closed in &closed {
            index.apply(closed)?;
        }
        let rows: usize = closed.iter().map(|closed| closed.ops.len()).sum();
        Ok(rows as f64 / begun.elapsed().as_secs_f64())
    })
    .await?
}

async fn plain(args: &Args, address: &str, number: u32) -> anyhow::Result<f64> {
    let keyspace = format!("plain_{number}");
    let session: Session = SessionBuilder::new().known_node(address).build().await?;
    let replication = "{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}";
    session.query_unpaged(format!("CREATE KEYSPACE {keyspace} WITH replication = {replication}"), ()).await?;
    let columns = "kind text, owner bigint, part bigint, key blob, value blob, PRIMARY KEY ((kind, owner, part), key)";
    session.query_unpaged(format!("CREATE TABLE {keyspace}.lists ({columns})"), ()).await?;
    let put = "(kind, owner, part, key, value) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
    let prepared = session.prepare(format!("INSERT INTO {keyspace}.lists {put}")).await?;
    let begun = Instant::now();
    let mut written = 0;
    for (number, first) in (0..args.rows).step_by(AT_ONCE as usize).enumerate() {
        let mut rows: Vec<_> = (first..args.rows.min(first + AT_ONCE))
            .map(|number| {
                let key = [(!number).to_be_bytes(), (!number).to_be_bytes()].concat();
                ("followers", number % ACCOUNTS, 0_i64, key, Vec::<u8>::new())
            })
            .collect();
        rows.sort();
        written += rows.len();
        let at = 1_000 * (1 + number as i64);
        let requests = rows
            .chunk_by(|one, other| one.1 == other.1)
            .flat_map(|of_account| of_account.chunks(BATCH_ROWS))
            .map(|rows| send(&session, &prepared, rows, at));
        stream::iter(requests).buffer_unordered(CONCURRENCY).try_collect::<Vec<()>>().await?;
    }
    Ok(written as f64 / begun.elapsed().as_secs_f64())
}

type Row = (&'static str, i64, i64, Vec<u8>, Vec<u8>);

async fn send(session: &Session, prepared: &PreparedStatement, rows: &[Row], at: i64) -> anyhow::Result<()> {
    let statements = rows.iter().map(|_| prepared.clone().into()).collect();
    let batch = Batch::new_with_statements(BatchType::Unlogged, statements);
    let values: Vec<_> =
        rows.iter().map(|(view, owner, part, key, value)| (view, owner, part, key, value, at)).collect();
    session.batch(&batch, values).await?;
    Ok(())
}

/// Measures pairs.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let address = Cassandra::shared().address();
    let ours = |number| runtime.block_on(store(args, &address, number));
    pairs(args, "rows into CQL", ours, |number| runtime.block_on(plain(args, &address, number)))
}
