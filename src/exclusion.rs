//! One at a time: commands that fill a database exclude each other by an advisory lock of its.

use anyhow::Context;
use tokio_postgres::Client;

/// How long to wait for another one, which may have died a moment ago.
const WAIT: &str = "30s";

/// Waits until nobody else holds `name`, and holds it until the client's session ends, however it ends.
pub async fn exclude_others(client: &Client, name: &str) -> anyhow::Result<()> {
    // A backend whose client was killed notices only when it talks to it, or when it looks; not every system can look.
    let _ = client.batch_execute("SET client_connection_check_interval = '1s'").await;
    client.batch_execute(&format!("SET lock_timeout = '{WAIT}'")).await?;
    client
        .execute("SELECT pg_advisory_lock(hashtext('feedmill exclusion'), hashtext($1))", &[&name])
        .await
        .with_context(|| format!("another process works at `{name}` in this database: wait for its end"))?;
    client.batch_execute("RESET lock_timeout").await?;
    Ok(())
}
