//! What a start says on standard output.

use std::net::SocketAddr;

use feedmill_connectors::postgres::Cluster;

use crate::config::Settings;

/// Says on standard output what runs where.
pub fn print(settings: &Settings, listen: SocketAddr, cluster: Option<&Cluster>) -> anyhow::Result<()> {
    use std::io::Write;
    let postgres = match cluster {
        Some(_) => format!(
            "psql -h {} -U feedmill feedmill",
            settings.data.join("postgres/socket").canonicalize().unwrap_or_default().display()
        ),
        None => "the one of --database-url".to_owned(),
    };
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
