//! The role: what it is, and what it may do.

use feedmill_model::Relation;
use tokio_postgres::Client;

use super::super::error::identifier;
use super::super::schema::{self, PUBLICATION, SCHEMA};
use super::{Asked, Finding};

/// Tables that are not published: the API writes them.
const BESIDE: [&str; 5] = ["accounts", "sessions", "idempotency_keys", "erasures", "imports"];

/// LOGIN is had by whoever asks. REPLICATION is needed, and nothing beyond it.
pub(super) async fn attributes(client: &Client) -> Asked {
    const CHECK: &str = "role";
    let row = client
        .query_one(
            "SELECT rolname::text, rolsuper, rolreplication, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') \
             FROM pg_roles WHERE rolname = current_user",
            &[],
        )
        .await?;
    let (name, superuser, replication, statistics): (&str, bool, bool, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    let role = identifier(name);
    if superuser {
        let found = format!("{name} is a superuser, which is not needed: what it may do nobody bounds");
        let mend = format!(
            "CREATE ROLE feedmill LOGIN REPLICATION PASSWORD '…' IN ROLE pg_read_all_stats; and make it the owner of \
             the database; or ALTER ROLE {role} NOSUPERUSER REPLICATION;"
        );
        return Ok(vec![Finding::warn(CHECK, found, mend)]);
    }
    let mut findings = vec![if replication {
        Finding::ok(CHECK, format!("{name} may log in and replicate, and is no superuser"))
    } else {
        let found = format!("{name} may not replicate");
        Finding::fail(CHECK, found, format!("ALTER ROLE {role} REPLICATION;"))
    }];
    if !statistics {
        let found = format!("{name} may not see whether a connection that holds the slot is still alive");
        findings.push(Finding::warn("statistics", found, format!("GRANT pg_read_all_stats TO {role};")));
    }
    Ok(findings)
}

/// Whether the schema is there, and if not, whether it can be made.
pub(super) async fn schema(client: &Client) -> Asked {
    const CHECK: &str = "schema";
    let row = client
        .query_one(
            "SELECT to_regclass($1)::text, has_schema_privilege($2, 'CREATE'), \
             has_database_privilege(current_database(), 'CREATE'), current_user::text, current_database()::text, \
             EXISTS (SELECT FROM pg_publication WHERE pubname = $3)",
            &[&format!("{SCHEMA}.refinery_schema_history"), &SCHEMA, &PUBLICATION],
        )
        .await?;
    let (history, in_schema, in_database): (Option<&str>, bool, bool) = (row.get(0), row.get(1), row.get(2));
    let (role, database) = (identifier(row.get(3)), identifier(row.get(4)));
    let published: bool = row.get(5);
    let applied: Vec<i64> = match history {
        None => Vec::new(),
        Some(history) => {
            let rows = client.query(&format!("SELECT version::bigint FROM {history}"), &[]).await;
            rows?.iter().map(|row| row.get(0)).collect()
        }
    };
    let known = schema::versions();
    let missing = known.iter().filter(|version| !applied.contains(*version)).count();
    if let Some(later) = applied.iter().find(|version| !known.contains(*version)) {
        let found = format!("migration V{later} was applied, which this version does not know");
        return Ok(vec![Finding::fail(CHECK, found, "use the version of Feedmill that applied it, or a later one")]);
    }
    let mut lacks = Vec::new();
    if missing > 0 && !in_schema {
        lacks.push(format!("GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {role};"));
    }
    if !published && !in_database {
        lacks.push(format!("GRANT CREATE ON DATABASE {database} TO {role};"));
    }
    if !lacks.is_empty() {
        let found = "the tables or the publication are still to be made, and the role may not make them";
        return Ok(vec![Finding::fail(CHECK, found, lacks.join(" "))]);
    }
    Ok(vec![Finding::ok(
        CHECK,
        match missing {
            0 => format!("all {} migrations are applied", known.len()),
            missing if missing == known.len() => "empty; the first start makes it".to_owned(),
            missing => format!("the next start applies {missing} migrations"),
        },
    )])
}

/// What the role may do with the tables that are there.
pub(super) async fn privileges(client: &Client) -> Asked {
    const CHECK: &str = "privileges";
    let relations: Vec<&str> = Relation::ALL.iter().map(|relation| relation.table()).collect();
    let all: Vec<&str> = relations.iter().copied().chain(BESIDE).collect();
    let rows = client
        .query(
            "SELECT c.relname::text, has_table_privilege(c.oid, 'SELECT'), \
             has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') \
             AND has_table_privilege(c.oid, 'DELETE'), \
             pg_has_role(current_user, c.relowner, 'USAGE'), current_user::text, pg_get_userbyid(c.relowner)::text, \
             EXISTS (SELECT FROM pg_publication WHERE pubname = $3) \
             FROM pg_class c WHERE c.relnamespace = to_regnamespace($1) AND c.relkind IN ('r', 'p') \
             AND c.relname::text = ANY ($2) ORDER BY c.relname",
            &[&SCHEMA, &all, &PUBLICATION],
        )
        .await?;
    let (mut unread, mut unwritten, mut foreign, mut owner) = (Vec::new(), Vec::new(), Vec::new(), None);
    let (mut role, mut published) = (String::new(), true);
    for row in &rows {
        let (table, reads, writes, owns): (&str, bool, bool, bool) = (row.get(0), row.get(1), row.get(2), row.get(3));
        (role, published) = (identifier(row.get(4)), row.get(6));
        let name = format!("{SCHEMA}.{}", identifier(table));
        if !reads {
            unread.push(name.clone());
        }
        if !writes {
            unwritten.push(name.clone());
        }
        if !owns && relations.contains(&table) {
            foreign.push(name);
            owner = Some(identifier(row.get(5)));
        }
    }
    let mut findings = Vec::new();
    if !unread.is_empty() {
        let (found, tables) = (format!("the role may not read {}", unread.join(", ")), unread.join(", "));
        let mend = format!("GRANT USAGE ON SCHEMA {SCHEMA} TO {role}; GRANT SELECT ON {tables} TO {role};");
        findings.push(Finding::fail(CHECK, found, mend));
    }
    if !unwritten.is_empty() {
        let tables = unwritten.join(", ");
        let found =
            format!("the role may not write {tables}: the API, and the list of popular accounts, cannot either");
        findings.push(Finding::warn(CHECK, found, format!("GRANT INSERT, UPDATE, DELETE ON {tables} TO {role};")));
    }
    if let Some(owner) = owner {
        let found = format!("the role does not own {}", foreign.join(", "));
        let mend = format!("GRANT {owner} TO {role};");
        findings.push(if published {
            Finding::warn(CHECK, format!("{found}: it cannot make partitions ahead, nor migrate"), mend)
        } else {
            Finding::fail(CHECK, format!("{found}: it cannot publish them"), mend)
        });
    }
    if findings.is_empty() && !rows.is_empty() {
        findings.push(Finding::ok(CHECK, format!("the role owns, reads and writes {} tables", rows.len())));
    }
    Ok(findings)
}
