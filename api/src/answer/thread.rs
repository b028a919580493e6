//! Threads, as clients get them.

use feedmill_sinks::read::{Ancestor, ThreadReply};
use serde::Serialize;
use utoipa::ToSchema;

use super::flags::Flags;
use super::{IdText, TweetBody};

/// What a reader may see of something in a thread.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
enum Seen {
    /// The tweet is there.
    Shown,
    /// It was deleted.
    Deleted,
    /// It is not for this reader.
    Hidden,
}

/// A reply in its thread.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Reply)]
pub(crate) struct ReplyBody<'a> {
    id: IdText,
    /// The tweet that it answers.
    parent_id: IdText,
    /// How far it is from the first tweet of the thread: 1 for an answer to that, and at most 1000.
    #[schema(minimum = 1, maximum = 1000)]
    depth: usize,
    /// Whether the reply was deleted: then it only keeps its place, for those that answer it.
    deleted: bool,
    /// `null` if it was deleted.
    tweet: Option<TweetBody<'a>>,
}

impl<'a> ReplyBody<'a> {
    /// A reply, with the flags of who reads.
    pub fn new(reply: &'a ThreadReply, flags: &Flags) -> Self {
        ReplyBody {
            id: IdText(reply.id),
            parent_id: IdText(reply.parent),
            depth: reply.depth,
            deleted: reply.tweet.is_none(),
            tweet: reply.tweet.as_ref().map(|tweet| TweetBody::from(tweet).seen(flags)),
        }
    }
}

/// A page of the replies below a tweet.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Conversation)]
pub(crate) struct ConversationBody<'a> {
    pub replies: Vec<ReplyBody<'a>>,
    /// Where the next page begins; `null` when there is nothing more. A page may be short, even empty, and have one.
    pub next_cursor: Option<String>,
}

/// Something that a tweet answers, directly or not.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Ancestor)]
pub(crate) struct AncestorBody<'a> {
    id: IdText,
    state: Seen,
    /// `null` unless it is shown.
    tweet: Option<TweetBody<'a>>,
}

impl<'a> AncestorBody<'a> {
    /// One of them, with the flags of who reads.
    pub fn new(ancestor: &'a Ancestor, flags: &Flags) -> Self {
        let (id, state, tweet) = match ancestor {
            Ancestor::Shown(tweet) => {
                (tweet.tweet.tweet.id, Seen::Shown, Some(TweetBody::from(tweet.as_ref()).seen(flags)))
            }
            Ancestor::Deleted(id) => (*id, Seen::Deleted, None),
            Ancestor::Hidden(id) => (*id, Seen::Hidden, None),
        };
        AncestorBody { id: IdText(id), state, tweet }
    }
}

/// A page of what a tweet answers.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Ancestors)]
pub(crate) struct AncestorsBody<'a> {
    pub ancestors: Vec<AncestorBody<'a>>,
    /// Where the page of those above them begins; `null` when the first tweet of the thread is here.
    pub next_cursor: Option<String>,
}
