//! The tables.
//!
//! | table | partition | rows | what |
//! |---|---|---|---|
//! | `facts` | owner, and a part of the list ([`super::spread`]) | kind and the other account → accepted | visibility facts |
//! | `rows` | owner: a user, a tweet or a name | kind: the view, key → value | rows of users and tweets beside their counts, names, retweets, read marks; lists of trends |
//! | `lists` | kind: the view, owner, and a part of the list | key → value | followers, likers, timelines, tags, threads, notifications, … |
//! | `home` | viewer | kind, id: the record, hot accounts, entries from the newest | home timelines |
//! | `progress` | store and generation | set of shards → time, LSN, floor | what was applied |
//! | `state` | name | value | format, source, generations |
//!
//! Keys and values are those of the local store ([`crate::layout`]), without what the partition says: their bytes are in the
//! order in which pages come, so a page is a range of a partition. There are few tables because each costs memory on every
//! node and a second when it is made. A row of a tweet is in one partition with its counts, since they are read together; a
//! list is apart from it, because it grows. A list of trends, whose rows leave it as fast as they come, is one value
//! ([`super::trends`]).
//!
//! Reactions are in the tables of the rows, because a tweet is read with all of its counts: both are begun anew together.
//!
//! Each write has the timestamp `Time × 1000`, which is microseconds since 1970 as CQL's are.

use scylla::client::session::Session;

use super::fault::{CqlError, Fault};
use super::settings::CqlSettings;

/// Version of what the tables hold. Another version is refused: derived data is rebuilt rather than migrated.
pub(super) const FORMAT: u32 = 4;

/// Tables whose rows are parts of lists.
const LISTED: &str =
    "(kind text, owner bigint, part bigint, key blob, value blob, PRIMARY KEY ((kind, owner, part), key))";

pub(super) fn tables() -> [(&'static str, String); 6] {
    let entries = "WITH CLUSTERING ORDER BY (kind ASC, id DESC)";
    [
        ("facts", LISTED.to_owned()),
        ("lists", LISTED.to_owned()),
        ("rows", "(owner bigint, kind text, key blob, value blob, PRIMARY KEY ((owner), kind, key))".to_owned()),
        (
            "home",
            format!(
                "(viewer bigint, kind tinyint, id bigint, floor bigint, time bigint, PRIMARY KEY ((viewer), kind, id)) {entries}"
            ),
        ),
        (
            "progress",
            "(store text, generation bigint, shards bigint, time bigint, lsn bigint, floor bigint, \
             PRIMARY KEY ((store, generation), shards))"
                .to_owned(),
        ),
        ("state", "(name text PRIMARY KEY, value text)".to_owned()),
    ]
}

/// Makes what is not there. The keyspace has tablets where the cluster has them.
pub(super) async fn make(session: &Session, settings: &CqlSettings) -> Result<(), CqlError> {
    let keyspace = &settings.keyspace;
    let failed = |tried: &'static str| {
        move |error: scylla::errors::ExecutionError| CqlError::Engine {
            tried,
            keyspace: keyspace.clone(),
            source: Box::new(Fault::Refused { servers: settings.servers(), problem: error.to_string() }),
        }
    };
    let found =
        session.query_unpaged("SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?", (keyspace,));
    let found = found.await.map_err(failed("look for it"))?;
    // Whoever has made it has said where its replicas are, and need not let others make keyspaces.
    if found.into_rows_result().is_ok_and(|rows| rows.rows_num() == 0) {
        let nodes = session.get_cluster_state().get_nodes_info().len();
        let replicas = settings.replication.unwrap_or_else(|| nodes.clamp(1, 3) as u16);
        let tablets = if has_tablets(session).await { " AND tablets = {'enabled': true}" } else { "" };
        let statement = format!(
            "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = \
             {{'class': 'NetworkTopologyStrategy', 'replication_factor': {replicas}}}{tablets}"
        );
        session.query_unpaged(statement, ()).await.map_err(failed("make it"))?;
        tracing::info!("made the keyspace {keyspace} with {replicas} replicas of each row in the CQL cluster");
    }
    for (name, columns) in tables() {
        let statement = format!("CREATE TABLE IF NOT EXISTS {keyspace}.{name} {columns}");
        session.query_unpaged(statement, ()).await.map_err(failed("make the tables"))?;
    }
    Ok(())
}

/// Whether a keyspace can have tablets: ScyllaDB names them among the features of the cluster, and Cassandra has no such
/// column.
async fn has_tablets(session: &Session) -> bool {
    let found = session.query_unpaged("SELECT supported_features FROM system.local", ()).await;
    let features = found.ok().and_then(|found| found.into_rows_result().ok());
    let features = features.and_then(|rows| rows.maybe_first_row::<(Option<String>,)>().ok().flatten());
    features.and_then(|(features,)| features).is_some_and(|features| features.split(',').any(|name| name == "TABLETS"))
}
