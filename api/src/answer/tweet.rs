//! Tweets, as clients get them.

use feedmill_model::User;
use feedmill_model::text::{Entity, entities};
use feedmill_sinks::CountedTweet;
use feedmill_sinks::read::TimelineTweet;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::flags::Flags;
use super::user::AuthorBody;
use super::{IdText, TimeText};

/// A tweet. `liked` and `retweeted` are there for a reader who is signed in.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Tweet)]
pub(crate) struct TweetBody<'a> {
    id: IdText,
    content: &'a str,
    created_at: TimeText,
    /// The tweet that this one answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<IdText>,
    /// The first tweet of the thread: this one itself, if it answers none.
    conversation_id: IdText,
    author: AuthorBody<'a>,
    counts: TweetCounts,
    entities: EntitiesBody,
    /// What is attached.
    #[schema(value_type = Option<serde_json::Value>)]
    media: Option<&'a RawValue>,
    /// The reader likes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    liked: Option<bool>,
    /// The reader retweeted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    retweeted: Option<bool>,
    /// Whose retweet brought it here.
    #[serde(skip_serializing_if = "Option::is_none")]
    retweeted_by: Option<AuthorBody<'a>>,
}

/// How many there are.
#[derive(Serialize, ToSchema)]
struct TweetCounts {
    likes: i64,
    retweets: i64,
    replies: i64,
}

/// What the content names, each with its place: the number of Unicode code points before its beginning, its sign
/// included, and before its end.
#[derive(Serialize, ToSchema)]
#[schema(as = Entities)]
struct EntitiesBody {
    hashtags: Vec<HashtagBody>,
    mentions: Vec<MentionBody>,
    urls: Vec<UrlBody>,
}

/// A tag, as it is written, without its sign.
#[derive(Serialize, ToSchema)]
#[schema(as = Hashtag)]
struct HashtagBody {
    tag: String,
    start: usize,
    end: usize,
}

/// A name, as it is written, without its sign; of a user or not.
#[derive(Serialize, ToSchema)]
#[schema(as = Mention)]
struct MentionBody {
    username: String,
    start: usize,
    end: usize,
}

/// A link.
#[derive(Serialize, ToSchema)]
#[schema(as = Url)]
struct UrlBody {
    url: String,
    start: usize,
    end: usize,
}

impl EntitiesBody {
    fn of(content: &str) -> Self {
        let found = entities(content);
        let hashtag = |Entity { start, end, text }| HashtagBody { tag: text, start, end };
        let mention = |Entity { start, end, text }| MentionBody { username: text, start, end };
        let url = |Entity { start, end, text }| UrlBody { url: text, start, end };
        EntitiesBody {
            hashtags: found.hashtags.into_iter().map(hashtag).collect(),
            mentions: found.mentions.into_iter().map(mention).collect(),
            urls: found.urls.into_iter().map(url).collect(),
        }
    }
}

impl<'a> TweetBody<'a> {
    /// A tweet by `author`.
    fn new(counted: &'a CountedTweet, author: &'a User) -> Self {
        let tweet = &counted.tweet;
        TweetBody {
            id: IdText(tweet.id),
            content: &tweet.content,
            created_at: TimeText(tweet.created_at),
            reply_to: tweet.reply_to_id.map(IdText),
            conversation_id: IdText(tweet.conversation_id),
            author: author.into(),
            counts: TweetCounts { likes: counted.likes, retweets: counted.retweets, replies: counted.replies },
            entities: EntitiesBody::of(&tweet.content),
            // PostgreSQL wrote it, so it is JSON.
            media: tweet.media.as_deref().and_then(|media| serde_json::from_str(media).ok()),
            liked: None,
            retweeted: None,
            retweeted_by: None,
        }
    }

    /// A tweet that `author` has just posted, who reads it.
    pub fn posted(counted: &'a CountedTweet, author: &'a User) -> Self {
        TweetBody::new(counted, author).seen(&Flags::of_new(counted.tweet.id, author.id))
    }

    /// The same with the flags of who reads.
    pub fn seen(self, flags: &Flags) -> Self {
        let did = flags.of_tweet(self.id.0);
        TweetBody {
            author: self.author.seen(flags),
            retweeted_by: self.retweeted_by.map(|by| by.seen(flags)),
            liked: did.map(|did| did.liked),
            retweeted: did.map(|did| did.retweeted.is_some()),
            ..self
        }
    }
}

impl<'a> From<&'a TimelineTweet> for TweetBody<'a> {
    fn from(item: &'a TimelineTweet) -> Self {
        let retweeted_by = item.retweeted_by.as_ref().map(|profile| AuthorBody::from(&profile.user));
        TweetBody { retweeted_by, ..TweetBody::new(&item.tweet, &item.author.user) }
    }
}

/// A page of tweets.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Tweets)]
pub(crate) struct TweetsBody<'a> {
    pub tweets: Vec<TweetBody<'a>>,
    /// Where the next page begins; `null` when there is nothing more. A page may be short, even empty, and have one.
    pub next_cursor: Option<String>,
}
