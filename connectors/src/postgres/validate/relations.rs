//! The relations: whether all that is read of them is published, and whether their changes say which row they are of.

use feedmill_model::Relation;
use tokio_postgres::Client;

use super::super::error::identifier;
use super::super::schema::{OPTIONS, PUBLICATION, SCHEMA, published_tables};
use super::{Asked, Finding};

/// The publication holds every table and column that is read, all rows and all kinds of change. Nothing is found where
/// there is none yet.
pub(super) async fn publication(client: &Client) -> Asked {
    const CHECK: &str = "publication";
    let settings = client
        .query_opt(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, puballtables FROM pg_publication \
             WHERE pubname = $1",
            &[&PUBLICATION],
        )
        .await?;
    let Some(settings) = settings else {
        return Ok(vec![Finding::ok(CHECK, "there is none yet; the first start makes it")]);
    };
    let lacks: Vec<&str> = [
        "does not publish inserts",
        "does not publish updates",
        "does not publish deletes",
        "does not publish truncates",
        "does not publish through the partition root",
    ]
    .into_iter()
    .enumerate()
    .filter_map(|(at, lack)| (!settings.get::<_, bool>(at)).then_some(lack))
    .collect();
    let (through_root, everything): (bool, bool) = (settings.get(4), settings.get(5));
    let mut findings = Vec::new();
    let later = "what was written meanwhile was not published: resync, if any was";
    if !lacks.is_empty() {
        let found = format!("{PUBLICATION} {} ({later})", lacks.join(", "));
        findings.push(Finding::fail(CHECK, found, format!("ALTER PUBLICATION {PUBLICATION} SET ({OPTIONS});")));
    }
    let missing = match (through_root, everything) {
        // It names no tables, and lists partitions: what is missing shows once it goes through the root.
        (false, true) => Vec::new(),
        _ => missing(client, through_root).await?,
    };
    if !missing.is_empty() {
        let found = format!("{PUBLICATION} {} ({later})", missing.join(", "));
        let mend = if everything {
            "make the tables: start Feedmill on the schema that it has migrated itself".to_owned()
        } else {
            format!("ALTER PUBLICATION {PUBLICATION} SET TABLE {};", published_tables())
        };
        findings.push(Finding::fail(CHECK, found, mend));
    }
    if findings.is_empty() {
        let found = format!("{PUBLICATION} publishes all {} tables", Relation::ALL.len());
        findings.push(Finding::ok(CHECK, found));
    }
    Ok(findings)
}

/// What the publication leaves out, in words. One that does not publish through the root lists partitions instead of
/// the tables that were named: then only the names count. Column lists and row filters exist from PostgreSQL 15 on, so
/// they are read by way of JSON, which does not mind their absence.
async fn missing(client: &Client, through_root: bool) -> Result<Vec<String>, tokio_postgres::Error> {
    let published = if through_root {
        "SELECT tablename::text, ARRAY(SELECT jsonb_array_elements_text(to_jsonb(t) -> 'attnames')), \
                to_jsonb(t) ->> 'rowfilter' \
         FROM pg_publication_tables t WHERE pubname = $1 AND schemaname = $2"
    } else {
        "SELECT c.relname::text, '{}'::text[], NULL::text FROM pg_publication p \
         JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid \
         WHERE p.pubname = $1 AND c.relnamespace = to_regnamespace($2)"
    };
    let rows = client.query(published, &[&PUBLICATION, &SCHEMA]).await?;
    let mut missing = Vec::new();
    for relation in Relation::ALL {
        let table = relation.table();
        let Some(row) = rows.iter().find(|row| row.get::<_, &str>(0) == table) else {
            missing.push(format!("lacks the table {table}"));
            continue;
        };
        let (columns, filter): (Vec<String>, Option<String>) = (row.get(1), row.get(2));
        if !columns.is_empty() {
            let left_out = relation.columns().iter().filter(|column| !columns.iter().any(|name| name == *column));
            missing.extend(left_out.map(|column| format!("lacks the column {table}.{column}")));
        }
        if let Some(filter) = filter {
            missing.push(format!("leaves out rows of {table} by the filter {filter}"));
        }
    }
    Ok(missing)
}

/// Every table and partition is there with the columns that are read, and has a replica identity that holds the primary
/// key. Nothing is found where there is no schema yet.
pub(super) async fn identities(client: &Client) -> Asked {
    const CHECK: &str = "replica identity";
    let tables: Vec<&str> = Relation::ALL.iter().map(|relation| relation.table()).collect();
    // The columns of the index that is the identity: none for NOTHING, for FULL, and where the index is gone.
    let rows = client
        .query(
            "SELECT root.relname::text, c.oid::regclass::text, c.relreplident::text, \
                    ARRAY(SELECT a.attname::text FROM pg_index i \
                          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) \
                          WHERE i.indrelid = c.oid AND i.indisvalid AND CASE c.relreplident \
                                WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END), \
                    ARRAY(SELECT a.attname::text FROM pg_attribute a \
                          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) \
             FROM pg_class root CROSS JOIN LATERAL \
                  (SELECT root.oid UNION SELECT relid FROM pg_partition_tree(root.oid)) AS part(oid) \
             JOIN pg_class c ON c.oid = part.oid \
             WHERE root.relnamespace = to_regnamespace($1) AND root.relname::text = ANY ($2) \
               AND root.relkind IN ('r', 'p') ORDER BY 1, 2",
            &[&SCHEMA, &tables],
        )
        .await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    for relation in Relation::ALL {
        let table = relation.table();
        let mut parts = rows.iter().filter(|row| row.get::<_, &str>(0) == table).peekable();
        if parts.peek().is_none() {
            let found = format!("the table {SCHEMA}.{table} is not there");
            findings.push(Finding::fail("tables", found, "restore it, or start on a database of its own"));
        }
        let key = relation.columns().get(..relation.key_columns()).unwrap_or_default();
        for row in parts {
            let (name, identity): (&str, &str) = (row.get(1), row.get(2));
            let (indexed, columns): (Vec<String>, Vec<String>) = (row.get(3), row.get(4));
            for column in relation.columns().iter().filter(|column| !columns.iter().any(|name| name == *column)) {
                let (found, mend) = (format!("{name} has no column {column}"), "restore the column, then resync");
                findings.push(Finding::fail("tables", found, mend));
            }
            if identity != "f" && !key.iter().all(|column| indexed.iter().any(|name| name == column)) {
                findings.push(unfit_identity(name, identity, &indexed, key));
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("all {} tables and partitions say which row changed", rows.len())));
    }
    Ok(findings)
}

/// A table of which a deleted row could not be told. `name` is quoted as SQL needs it.
fn unfit_identity(name: &str, identity: &str, indexed: &[String], key: &[&str]) -> Finding {
    let keys = key.iter().map(|column| identifier(column)).collect::<Vec<_>>().join(", ");
    let (found, mend) = match identity {
        "d" => {
            let found = format!("{name} has REPLICA IDENTITY DEFAULT and no primary key with {keys}");
            (found, format!("ALTER TABLE {name} ADD PRIMARY KEY ({keys});"))
        }
        "i" if indexed.is_empty() => {
            let found = format!("{name} has REPLICA IDENTITY USING INDEX, and the index is gone");
            (found, format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"))
        }
        "i" => {
            let indexed = indexed.join(", ");
            let found = format!("{name} has REPLICA IDENTITY USING INDEX on ({indexed}), which does not hold {keys}");
            (found, format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"))
        }
        _ => {
            let found = format!("{name} has REPLICA IDENTITY NOTHING: its updates and deletes do not say of which row");
            (found, format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"))
        }
    };
    Finding::fail("replica identity", found, mend)
}
