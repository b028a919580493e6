//! What the index holds: one document of tantivy's a tweet, one an account.
//!
//! Words come cut and folded, with spaces between them; the engine cuts at the spaces. Of the fields of a tweet an account
//! has none, and of an account's a tweet none, so a search for one finds only those.

use feedmill_model::{Document, text};
use tantivy::schema::document::Value;
use tantivy::schema::{FAST, Field, INDEXED, IndexRecordOption, STORED, Schema, TextFieldIndexing, TextOptions};
use tantivy::{TantivyDocument, Term};

use crate::search::{fold, prefixes, terms};

/// Names of fields that are read column by column.
pub(super) const TWEET: &str = "tweet";
pub(super) const ACCOUNT: &str = "account";

/// The fields.
#[derive(Clone, Copy)]
pub(super) struct Fields {
    /// Id of a tweet.
    pub tweet: Field,
    /// Id of its author.
    pub author: Field,
    /// When it was posted, in microseconds.
    pub at: Field,
    /// Whether media is attached.
    pub media: Field,
    /// Its words.
    pub words: Field,
    /// Its tags.
    pub tags: Field,
    /// The names mentioned.
    pub mentions: Field,
    /// Id of an account.
    pub account: Field,
    /// Its name.
    pub username: Field,
    /// The words of its names.
    pub names: Field,
    /// All beginnings of these.
    pub prefixes: Field,
    /// The document itself.
    source: Field,
}

/// The schema and its fields.
pub(super) fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let text = |record, norms| {
        let indexing = TextFieldIndexing::default().set_tokenizer("whitespace").set_index_option(record);
        TextOptions::default().set_indexing_options(indexing.set_fieldnorms(norms))
    };
    let terms = || text(IndexRecordOption::Basic, false);
    let fields = Fields {
        tweet: schema.add_i64_field(TWEET, INDEXED | FAST),
        author: schema.add_i64_field("author", INDEXED),
        at: schema.add_i64_field("at", INDEXED | FAST),
        media: schema.add_bool_field("media", INDEXED),
        words: schema.add_text_field("words", text(IndexRecordOption::WithFreqsAndPositions, true)),
        tags: schema.add_text_field("tags", terms()),
        mentions: schema.add_text_field("mentions", terms()),
        account: schema.add_i64_field(ACCOUNT, INDEXED | FAST),
        username: schema.add_text_field("username", terms()),
        names: schema.add_text_field("names", terms()),
        prefixes: schema.add_text_field("prefixes", terms()),
        source: schema.add_bytes_field("source", STORED),
    };
    (schema.build(), fields)
}

impl Fields {
    /// The term that a document alone has.
    pub(super) fn key(&self, document: &Document) -> Term {
        match document {
            Document::Tweet { id, .. } => Term::from_field_i64(self.tweet, *id),
            Document::Account { id, .. } => Term::from_field_i64(self.account, *id),
        }
    }

    /// The document as it is indexed.
    pub(super) fn document(&self, document: &Document) -> TantivyDocument {
        let mut indexed = TantivyDocument::new();
        match document {
            Document::Tweet { id, user, content, media, at } => {
                indexed.add_i64(self.tweet, *id);
                indexed.add_i64(self.author, *user);
                indexed.add_i64(self.at, *at);
                indexed.add_bool(self.media, *media);
                indexed.add_text(self.words, terms(content).join(" "));
                text::hashtags(content).iter().for_each(|tag| indexed.add_text(self.tags, tag));
                text::mentions(content).iter().for_each(|name| indexed.add_text(self.mentions, name));
            }
            Document::Account { id, username, name } => {
                let names = [terms(username), terms(name)].concat();
                indexed.add_i64(self.account, *id);
                indexed.add_text(self.username, fold(username));
                for name in names {
                    indexed.add_text(self.prefixes, prefixes(&name).collect::<Vec<_>>().join(" "));
                    indexed.add_text(self.names, name);
                }
            }
        }
        // Numbers, booleans and texts can always be encoded.
        indexed.add_bytes(self.source, &postcard::to_stdvec(document).unwrap_or_default());
        indexed
    }

    /// The document that was indexed.
    pub(super) fn source(&self, indexed: &TantivyDocument) -> Option<Document> {
        postcard::from_bytes(indexed.get_first(self.source)?.as_bytes()?).ok()
    }
}
