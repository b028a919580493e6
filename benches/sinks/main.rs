//! What is written to other servers, beside plain loops of their drivers that write the same.
//!
//! ```text
//!   closed times ─► CqlIndex ──────► rows a second        ┐           ┌ batches of one partition, as many on their way
//!   closed times ─► ElasticSearch ─► documents a second   ├─ beside ──┤ bulks, one after the other
//!   batches ──────► Publisher ─────► messages a second    ┘           └ sends and commits of Kafka's producer
//! ```
//!
//! Both of a pair go to one server, which is started for this, and into tables, indices or topics of their own. A pair is
//! written before it counts, since a cold server is slow whoever asks it; then which comes first changes from pair to pair,
//! and the ratio is the median of those of the pairs. The plain loops are given what they send ready made where it has
//! another form than ours: lines of a bulk, envelopes.
//!
//! ```text
//!   make servers && cargo bench --bench sinks
//!   cargo bench --bench sinks -- --of cql --pairs 9
//! ```

mod cql;
mod elastic;
mod kafka;

use clap::{Parser, ValueEnum};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is measured.
#[derive(Parser, Clone, Debug)]
struct Args {
    /// One server only
    #[arg(long)]
    of: Option<Of>,
    /// Pairs of runs
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Rows of a run into CQL
    #[arg(long, default_value_t = 400_000)]
    rows: i64,
    /// Documents of a run into Elasticsearch
    #[arg(long, default_value_t = 100_000)]
    documents: u64,
    /// Changes of a run into Kafka, of which each is two messages
    #[arg(long, default_value_t = 320_000)]
    changes: i64,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// Whose servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Of {
    /// Apache Cassandra.
    Cql,
    /// Elasticsearch.
    Elastic,
    /// Apache Kafka.
    Kafka,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let is_wanted = |of| args.of.is_none_or(|wanted| wanted == of);
    if is_wanted(Of::Cql) {
        cql::run(&args)?;
    }
    if is_wanted(Of::Elastic) {
        elastic::run(&args)?;
    }
    if is_wanted(Of::Kafka) {
        kafka::run(&args)?;
    }
    Ok(())
}

/// Measures pairs: each function is given the number of the pair, and gives how much it wrote a second. That of the pair 0 does
/// not count.
fn pairs(
    args: &Args,
    what: &str,
    mut ours: impl FnMut(u32) -> anyhow::Result<f64>,
    mut plain: impl FnMut(u32) -> anyhow::Result<f64>,
) -> anyhow::Result<()> {
    let mut ratios = Vec::new();
    for number in 0..=args.pairs {
        let (own, plainly) = if number % 2 == 0 {
            let own = ours(number)?;
            (own, plain(number)?)
        } else {
            let plainly = plain(number)?;
            (ours(number)?, plainly)
        };
        if number > 0 {
            println!("{what}: {own:.0}/s by Feedmill, {plainly:.0}/s by a plain loop: {:.2}", own / plainly);
            ratios.push(own / plainly);
        }
    }
    ratios.sort_by(f64::total_cmp);
    if let Some(median) = ratios.get(ratios.len() / 2) {
        println!("{what}: {median:.2} of a plain loop (median of {} pairs)", ratios.len());
    }
    Ok(())
}
