//! What a start says on standard output.

use std::net::SocketAddr;

use feedmill_connectors::kafka::{KafkaLog, Topics};
use feedmill_connectors::postgres::Cluster;

use crate::config::Settings;
use crate::run;
use crate::serve;

/// Says on standard output what runs where.
pub fn print(settings: &Settings, listen: SocketAddr, cluster: Option<&Cluster>) -> anyhow::Result<()> {
    use std::io::Write;
    let postgres = postgres(settings, cluster);
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "
  Feedmill {version}
    API         http://{listen}/
    PostgreSQL  {postgres}
    data        {data}
    workers     {workers}

  Register the first user:

    curl -s http://{listen}/api/auth/register -H 'content-type: application/json' \\
      -d '{{\"username\":\"ada\",\"email\":\"ada@example.com\",\"password\":\"correct horse\",\"displayName\":\"Ada\"}}'

  Ctrl-C stops everything; the next start goes on from there.
",
        version = env!("CARGO_PKG_VERSION"),
        data = settings.data.display(),
        workers = settings.workers,
    )?;
    Ok(out.flush()?)
}

/// The same of a process that publishes the change log.
pub fn print_capture(
    settings: &Settings,
    listen: SocketAddr,
    cluster: Option<&Cluster>,
    to: &KafkaLog,
) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "
  Feedmill {version}, capture
    HTTP        http://{listen}/ (health, ready, metrics)
    PostgreSQL  {postgres}
    Kafka       {servers}, topics from {first} to {times}
    data        {data}

  Ctrl-C stops it; the next start goes on from there.
",
        version = env!("CARGO_PKG_VERSION"),
        postgres = postgres(settings, cluster),
        servers = to.servers,
        first = Topics::of(to).changes().next().unwrap_or_default(),
        times = Topics::of(to).times(),
        data = settings.data.display(),
    )?;
    Ok(out.flush()?)
}

/// The same of a process that serves what others derived.
pub fn print_serve(settings: &Settings, listen: SocketAddr, place: &serve::Place) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "
  Feedmill {version}, serve
    API         http://{listen}/
    PostgreSQL  {postgres}
    CQL         {store}
    search      {search}
    data        {data}

  Ctrl-C stops it within {drain} s and what requests under way take; twice, at once.
",
        version = env!("CARGO_PKG_VERSION"),
        postgres = place.source,
        store = place.store,
        search = place.search.address,
        data = settings.data.display(),
        drain = settings.drain_seconds,
    )?;
    Ok(out.flush()?)
}

/// The same of a process that derives the views from Kafka.
pub fn print_run(settings: &Settings, listen: SocketAddr, place: &run::Place) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "
  Feedmill {version}, run, process {process} of {processes}
    HTTP        http://{listen}/ (health, ready, metrics)
    Kafka       {servers}, topics of {times}
    CQL         {store}
    search      {search}
    data        {data}
    workers     {workers}

  Ctrl-C stops it, and with it the other processes; the next start goes on from there.
",
        version = env!("CARGO_PKG_VERSION"),
        process = place.process,
        processes = place.processes(),
        servers = place.estate.log.servers,
        times = Topics::of(&place.estate.log).times(),
        store = place.estate.store,
        search = place.estate.search.address,
        data = settings.data.display(),
        workers = settings.workers,
    )?;
    Ok(out.flush()?)
}

/// How PostgreSQL is reached.
fn postgres(settings: &Settings, cluster: Option<&Cluster>) -> String {
    match cluster {
        Some(_) => format!(
            "psql -h {} -U feedmill feedmill",
            settings.data.join("postgres/socket").canonicalize().unwrap_or_default().display()
        ),
        None => "the one of --database-url".to_owned(),
    }
}
