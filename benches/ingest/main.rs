//! Ingest: rows a second from a replication slot into the durable change log.
//!
//! Beside it, in the same run and on equal slots, `pg_recvlogical` writes what it receives to `/dev/null`: how fast the
//! server sends. The two take turns, and the median counts. CPU is the client's: of this process, and of
//! `pg_recvlogical`; the server's is not in it.
//!
//! ```text
//!   PostgreSQL ── slot ──> Stream ──> run_writer ──> Log (fsynced)
//!              └─ slot ──> pg_recvlogical ──> /dev/null
//!
//!   cargo bench --bench ingest
//!   cargo bench --bench ingest -- --rows 100000 --transactions 20000     a smaller run
//! ```

mod feedmill;
mod recvlogical;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use feedmill_connectors::postgres::{Cluster, Source, schema};
use feedmill_model::Lsn;
use nix::sys::resource::Usage;
use tokio_postgres::Client;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long PostgreSQL may take to start, and to stop.
const CLUSTER_MAX: Duration = Duration::from_secs(60);

/// What is measured.
#[derive(Parser, Clone, Debug)]
struct Args {
    /// Rows of the one large transaction
    #[arg(long, default_value_t = 1_000_000)]
    rows: u32,
    /// Transactions of one row
    #[arg(long, default_value_t = 200_000)]
    transactions: u32,
    /// Turns that each takes; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a run took.
#[derive(Clone, Copy, Debug)]
struct Figures {
    took: Duration,
    cpu: Duration,
}

/// What is to be read: everything between two positions, from a slot made at the first.
struct Work {
    rows: u32,
    /// Slots of which each is read once.
    slots: Vec<String>,
    from: Lsn,
    to: Lsn,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // PostgreSQL may run as another user, who must be able to enter.
    let dir = tempfile::Builder::new().prefix("ingest-").permissions(Permissions::from_mode(0o711)).tempdir()?;
    let cluster = Cluster::start(&dir.path().join("postgres"), CLUSTER_MAX).await?;
    let outcome = compare(&args, &cluster, dir.path()).await;
    cluster.stop(CLUSTER_MAX).await?;
    outcome
}

async fn compare(args: &Args, cluster: &Cluster, dir: &Path) -> anyhow::Result<()> {
    let source = cluster.source();
    schema::prepare(source).await?;
    let database = source.config().get_dbname().unwrap_or("feedmill");
    let sql = cluster.superuser().with_database(database).connect("ingest-bench").await?;
    // Likes without the tweets and accounts that they refer to.
    sql.batch_execute("SET session_replication_role = replica; SET synchronous_commit = off").await?;
    println!("{:<44} {:>12} {:>12} {:>8}", "", "rows/s", "CPU µs/row", "ratio");
    let large = format!(
        "INSERT INTO likes (user_id, tweet_id) SELECT n % 10007, n FROM generate_series(1, {}) AS n",
        args.rows
    );
    let work = prepare(&sql, "large", args, args.rows, &large).await?;
    turns(&format!("one transaction of {} rows", args.rows), &work, source, dir).await?;
    let small = format!(
        "DO $$ BEGIN FOR n IN 1..{} LOOP INSERT INTO likes (user_id, tweet_id) VALUES (-1 - n % 10007, n); COMMIT; \
         END LOOP; END $$",
        args.transactions
    );
    let work = prepare(&sql, "small", args, args.transactions, &small).await?;
    turns(&format!("{} transactions of one row", args.transactions), &work, source, dir).await
}

/// Makes the slots, and then what they are to tell.
async fn prepare(sql: &Client, name: &str, args: &Args, rows: u32, statement: &str) -> anyhow::Result<Work> {
    let slots: Vec<String> = (0..2 * args.rounds).map(|number| format!("{name}_{number}")).collect();
    let first = slots.first().context("--rounds is 0, but must be at least 1")?;
    let start = sql
        .query_one("SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')", &[first])
        .await
        .context("could not make a slot")?;
    for slot in slots.iter().skip(1) {
        sql.execute("SELECT pg_copy_logical_replication_slot($1, $2)", &[first, slot]).await?;
    }
    sql.batch_execute(statement).await.context("could not write the rows")?;
    // A commit that is waited for takes those before it along to the disk.
    sql.batch_execute("SET synchronous_commit = on").await?;
    sql.batch_execute("SELECT pg_logical_emit_message(true, 'end', '')").await?;
    sql.batch_execute("SET synchronous_commit = off").await?;
    let end = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
    let (from, to): (&str, &str) = (start.get(0), end.get(0));
    Ok(Work { rows, slots, from: from.parse()?, to: to.parse()? })
}

/// Both in turn, and the table.
async fn turns(name: &str, work: &Work, source: &Source, dir: &Path) -> anyhow::Result<()> {
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for pair in work.slots.chunks_exact(2) {
        let [one, other] = pair else { continue };
        theirs.push(recvlogical::run(source, one, work.to).await?);
        ours.push(feedmill::run(source, other, work, dir).await?);
    }
    let (theirs, ours) = (median(theirs)?, median(ours)?);
    println!("{name}");
    for (name, figures) in [("pg_recvlogical to /dev/null", theirs), ("Feedmill into its change log", ours)] {
        let rate = f64::from(work.rows) / figures.took.as_secs_f64();
        let cpu = figures.cpu.as_secs_f64() * 1e6 / f64::from(work.rows);
        let ratio = theirs.took.as_secs_f64() / figures.took.as_secs_f64();
        println!("  {name:<42} {rate:>12.0} {cpu:>12.2} {ratio:>8.2}");
    }
    Ok(())
}

/// The run that took neither longest nor shortest.
fn median(mut figures: Vec<Figures>) -> anyhow::Result<Figures> {
    figures.sort_by_key(|figures| figures.took);
    figures.get(figures.len() / 2).copied().context("nothing was measured")
}

/// Time on a processor, for whomever it was spent.
fn cpu(usage: &Usage) -> Duration {
    let spent = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    spent(usage.user_time()) + spent(usage.system_time())
}
