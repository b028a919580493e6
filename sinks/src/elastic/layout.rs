//! What the indices hold: one document a tweet, one an account, one a deletion.
//!
//! Words come cut and folded, with spaces between them; the server cuts at the spaces and does nothing else to them, so it
//! matches what the index on a machine's own disk matches. Of the fields of a tweet an account has none, and of an account's
//! a tweet none, so a search for one finds only those. A deletion has none of either.

use feedmill_model::{Document, Time, text};
use serde_json::{Value, json};

use super::Names;
use crate::search::{fold, prefixes, terms};

/// Version of the fields, and of the rules by which texts are cut into words. Indices of another are built again.
pub(super) const FORMAT: u32 = 1;

/// Settings that somebody may override in a component template of theirs.
pub(super) fn settings() -> Value {
    json!({
        "template": { "settings": { "index": { "number_of_shards": 1, "auto_expand_replicas": "0-1" } } },
        "_meta": { "description": "Defaults of Feedmill's search; override them in the component template @custom" },
    })
}

/// The template of all generations.
pub(super) fn template(names: &Names) -> Value {
    let words = json!({ "type": "text", "analyzer": "whitespace" });
    let term = json!({ "type": "keyword", "norms": false });
    json!({
        "index_patterns": [format!("{}*", names.generations())],
        "priority": 500,
        "composed_of": [names.settings(), names.custom()],
        "ignore_missing_component_templates": [names.custom()],
        "template": {
            "settings": { "index": {
                // What was acknowledged is on disk, and what is found is told when it was made so.
                "translog.durability": "request",
                "refresh_interval": -1,
            } },
            "mappings": {
                "dynamic": false,
                "_meta": { "format": FORMAT },
                "properties": {
                    "tweet": { "type": "long" },
                    "author": { "type": "long" },
                    "at": { "type": "long" },
                    "media": { "type": "boolean" },
                    "words": words,
                    "tags": term,
                    "mentions": term,
                    "account": { "type": "long" },
                    "username": term,
                    "names": term,
                    "prefixes": term,
                    "deleted": { "type": "boolean" },
                    "time": { "type": "long" },
                    "text": { "type": "object", "enabled": false },
                },
            },
        },
    })
}

/// The index that says how far a generation is, and what it could not take.
pub(super) fn progress() -> Value {
    json!({
        "settings": { "index": {
            "number_of_shards": 1, "auto_expand_replicas": "0-1", "translog.durability": "request", "hidden": true,
        } },
        "mappings": { "dynamic": false, "properties": {
            "kind": { "type": "keyword" },
            "index": { "type": "keyword" },
        } },
    })
}

/// The id of a document.
pub(super) fn key(document: &Document) -> String {
    match document {
        Document::Tweet { id, .. } => format!("t{id}"),
        Document::Account { id, .. } => format!("a{id}"),
    }
}

/// The tweet or the account of a document's id.
pub(super) fn id_of(key: &str) -> Option<i64> {
    key.get(1..)?.parse().ok()
}

/// The document as it is indexed.
pub(super) fn indexed(document: &Document) -> Value {
    match document {
        Document::Tweet { id, user, content, media, at } => json!({
            "tweet": id,
            "author": user,
            "at": at,
            "media": media,
            "words": terms(content).join(" "),
            "tags": text::hashtags(content),
            "mentions": text::mentions(content),
            "text": { "content": content },
        }),
        Document::Account { id, username, name } => {
            let names = [terms(username), terms(name)].concat();
            let beginnings: Vec<&str> = names.iter().flat_map(|name| prefixes(name)).collect();
            json!({
                "account": id,
                "username": fold(username),
                "prefixes": beginnings,
                "names": names,
                "text": { "username": username, "name": name },
            })
        }
    }
}

/// What stands in the place of a document that was deleted at `time`.
pub(super) fn tombstone(time: Time) -> Value {
    json!({ "deleted": true, "time": time })
}

/// The document that was indexed; `None` for a deletion, and for what cannot be decoded.
pub(super) fn document(source: &Value) -> Option<Document> {
    let number = |name: &str| source.get(name)?.as_i64();
    let text = |name: &str| source.get("text")?.get(name)?.as_str().map(str::to_owned);
    match (number("tweet"), number("account")) {
        (Some(id), None) => Some(Document::Tweet {
            id,
            user: number("author")?,
            content: text("content")?,
            media: source.get("media")?.as_bool()?,
            at: number("at")?,
        }),
        (None, Some(id)) => Some(Document::Account { id, username: text("username")?, name: text("name")? }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_indexed_can_be_read_again() {
        let tweet = Document::Tweet { id: -3, user: 7, content: "Über #Rust @Ada \u{1f}".into(), media: true, at: -1 };
        let account = Document::Account { id: 5, username: "Ada".into(), name: "Ada L.".into() };
        for document in [tweet, account] {
            assert_eq!(super::document(&indexed(&document)), Some(document.clone()));
            assert_eq!(id_of(&key(&document)), Some(if key(&document).starts_with('t') { -3 } else { 5 }));
        }
        assert_eq!(document(&tombstone(4)), None);
        assert_eq!(
            indexed(&Document::Account { id: 1, username: "É".into(), name: "Bo".into() })["prefixes"],
            json!(["e", "b", "bo"])
        );
    }
}
