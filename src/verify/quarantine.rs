//! Rows in quarantine are in the source and, rightly, in no view: the comparison leaves them out.
//!
//! A temporary view with the name of a table hides the rows from the views' SQL, for the one session that compares.

use std::collections::BTreeMap;

use anyhow::Context;
use feedmill_ingest::{Log, QuarantineId, Quarantined};
use feedmill_model::{Key, Relation, Time};
use tokio_postgres::Client;

use super::Report;

/// Rows that are left out at most; with more of them all are compared.
const ROWS_MAX: usize = 10_000;
/// Where a table lies.
const SCHEMA: &str = "SELECT quote_ident(nspname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                      WHERE pg_class.oid = to_regclass($1::text)";
/// Ids that are named.
const EXAMPLES: usize = 20;

/// What is in quarantine at a time.
pub struct Aside(Vec<(QuarantineId, Quarantined)>);

impl Aside {
    /// What `log` set aside up to `time`.
    pub fn at(log: &Log, time: Time) -> anyhow::Result<Self> {
        let mut rows = log.quarantine(None, ROWS_MAX).context("could not read the quarantine")?;
        rows.retain(|(_, row)| row.position.time <= time);
        Ok(Aside(rows))
    }

    /// Hides the rows from `client`, which is in a transaction of its own; tells what they are.
    pub async fn hide(&self, client: &Client) -> anyhow::Result<Option<Report>> {
        let Aside(rows) = self;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut hidden: BTreeMap<Relation, Vec<Key>> = BTreeMap::new();
        let mut unnamed = 0;
        for (id, _) in rows {
            match id {
                QuarantineId::Key(key) => hidden.entry(key.relation).or_default().push(*key),
                QuarantineId::Number(..) => unnamed += 1,
            }
        }
        for (relation, keys) in hidden {
            let schema: String = client.query_one(SCHEMA, &[&relation.table()]).await?.try_get(0)?;
            client.batch_execute(&view(&schema, relation, &keys)).await.context(
                "could not leave rows in quarantine out of the comparison; the role needs the right TEMPORARY on the \
                 database",
            )?;
        }
        let unnamed = match unnamed {
            0 => String::new(),
            unnamed => format!("; the {unnamed} without a readable key count as differences"),
        };
        Ok(Some(Report {
            view: "quarantine".to_owned(),
            note: Some(format!("{} rows are in quarantine and not compared{unnamed}", rows.len())),
            examples: rows.iter().take(EXAMPLES).map(|(id, row)| format!("{id}: {}", row.row.reason)).collect(),
            ..Report::default()
        }))
    }
}

fn view(schema: &str, relation: Relation, keys: &[Key]) -> String {
    let table = relation.table();
    let columns = relation.columns();
    let column = |number: usize| columns.get(number).copied().unwrap_or_default();
    let key = match relation {
        // Days since 1970, as a key has them; infinite ones have no distance, and a key of their own.
        Relation::Activity => format!(
            "{user}, CASE {day} WHEN 'infinity' THEN {} WHEN '-infinity' THEN {} ELSE {day} - DATE '1970-01-01' END",
            i32::MAX,
            i32::MIN,
            user = column(0),
            day = column(1),
        ),
        _ if relation.key_columns() == 1 => column(0).to_owned(),
        _ => format!("{}, {}", column(0), column(1)),
    };
    let values: Vec<String> = keys
        .iter()
        .map(|key| match relation.key_columns() {
            1 => format!("('{}'::bigint)", key.first),
            _ => format!("('{}'::bigint, '{}'::bigint)", key.first, key.second),
        })
        .collect();
    format!(
        "CREATE TEMPORARY VIEW {table} AS SELECT * FROM {schema}.{table} WHERE ({key}) NOT IN (VALUES {})",
        values.join(", ")
    )
}
