//! What clients get: JSON in camelCase, 64-bit ids as strings (JavaScript's numbers hold 53 bits), times as RFC 3339 in
//! UTC with microseconds.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use feedmill_model::{Time, Timestamp, User};
use feedmill_sinks::read::{Page, TimelineTweet};
use feedmill_sinks::{CountedTweet, Profile, ReadError};
use serde::{Serialize, Serializer};

use crate::cursor::{self, Cursor};
use crate::problem::{Kind, Problem};
use crate::request::List;

/// The time that a read served, in milliseconds since 1970.
const TIME: HeaderName = HeaderName::from_static("x-feedmill-time");
/// How long ago that was.
const LAG_MS: HeaderName = HeaderName::from_static("x-feedmill-lag-ms");

/// The beginning of the year 0000.
const YEAR_0: Timestamp = -62_167_219_200_000_000;

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::try_from(since.as_millis()).unwrap_or(Time::MAX)
}

/// A 64-bit id, written as text.
pub(crate) struct IdText(pub i64);

impl Serialize for IdText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A point in time, `null` where it is none that a calendar has: PostgreSQL's infinities, and years of five digits.
struct TimeText(Timestamp);

impl Serialize for TimeText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // RFC 3339 knows the years 0000 to 9999; jiff knows earlier ones too.
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(at) if self.0 >= YEAR_0 => serializer.collect_str(&format_args!("{at:.6}")),
            _ => serializer.serialize_none(),
        }
    }
}

/// A user.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserBody<'a> {
    id: IdText,
    username: &'a str,
    display_name: &'a str,
    bio: Option<&'a str>,
    avatar_url: Option<&'a str>,
    verified: bool,
    protected: bool,
    created_at: TimeText,
    counts: UserCounts,
}

#[derive(Serialize)]
struct UserCounts {
    followers: i64,
    following: i64,
    tweets: i64,
}

impl<'a> From<&'a Profile> for UserBody<'a> {
    fn from(profile: &'a Profile) -> Self {
        let user = &profile.user;
        UserBody {
            id: IdText(user.id),
            username: &user.username,
            display_name: &user.display_name,
            bio: user.bio.as_deref(),
            avatar_url: user.avatar_url.as_deref(),
            verified: user.verified,
            protected: user.protected,
            created_at: TimeText(user.created_at),
            counts: UserCounts { followers: profile.followers, following: profile.following, tweets: profile.tweets },
        }
    }
}

/// What is shown of a user beside a tweet.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthorBody<'a> {
    id: IdText,
    username: &'a str,
    display_name: &'a str,
    avatar_url: Option<&'a str>,
    verified: bool,
    protected: bool,
}

impl<'a> From<&'a User> for AuthorBody<'a> {
    fn from(user: &'a User) -> Self {
        AuthorBody {
            id: IdText(user.id),
            username: &user.username,
            display_name: &user.display_name,
            avatar_url: user.avatar_url.as_deref(),
            verified: user.verified,
            protected: user.protected,
        }
    }
}

/// A tweet.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TweetBody<'a> {
    id: IdText,
    content: &'a str,
    created_at: TimeText,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<IdText>,
    author: AuthorBody<'a>,
    counts: TweetCounts,
    #[serde(skip_serializing_if = "Option::is_none")]
    retweeted_by: Option<AuthorBody<'a>>,
}

#[derive(Serialize)]
struct TweetCounts {
    likes: i64,
    retweets: i64,
    replies: i64,
}

impl<'a> TweetBody<'a> {
    /// A tweet by `author`.
    pub fn new(counted: &'a CountedTweet, author: &'a User) -> Self {
        let tweet = &counted.tweet;
        TweetBody {
            id: IdText(tweet.id),
            content: &tweet.content,
            created_at: TimeText(tweet.created_at),
            reply_to: tweet.reply_to_id.map(IdText),
            author: author.into(),
            counts: TweetCounts { likes: counted.likes, retweets: counted.retweets, replies: counted.replies },
            retweeted_by: None,
        }
    }
}

impl<'a> From<&'a TimelineTweet> for TweetBody<'a> {
    fn from(item: &'a TimelineTweet) -> Self {
        let retweeted_by = item.retweeted_by.as_ref().map(|profile| AuthorBody::from(&profile.user));
        TweetBody { retweeted_by, ..TweetBody::new(&item.tweet, &item.author.user) }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TweetsBody<'a> {
    tweets: Vec<TweetBody<'a>>,
    next_cursor: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UsersBody<'a> {
    users: Vec<UserBody<'a>>,
    next_cursor: Option<&'a str>,
}

/// What was read, with the headers that say as of when.
pub(crate) fn as_of(time: Time, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    let headers = response.headers_mut();
    headers.insert(TIME, HeaderValue::from(time));
    headers.insert(LAG_MS, HeaderValue::from(now_ms().saturating_sub(time)));
    response
}

/// A page of tweets.
pub(crate) fn tweets_page<C: Cursor>(uri: &Uri, list: &List<C>, page: &Page<TimelineTweet, C>) -> Response {
    let next_cursor = page.next.as_ref().and_then(cursor::encode);
    let tweets = page.items.iter().map(TweetBody::from).collect();
    let body = Json(TweetsBody { tweets, next_cursor: next_cursor.as_deref() });
    linked(uri, list, next_cursor.as_deref(), as_of(page.time, body))
}

/// A page of users.
pub(crate) fn users_page<C: Cursor>(uri: &Uri, list: &List<C>, page: &Page<Profile, C>) -> Response {
    let next_cursor = page.next.as_ref().and_then(cursor::encode);
    let users = page.items.iter().map(UserBody::from).collect();
    let body = Json(UsersBody { users, next_cursor: next_cursor.as_deref() });
    linked(uri, list, next_cursor.as_deref(), as_of(page.time, body))
}

/// Adds the `Link` (RFC 8288) to the next page.
fn linked<C>(uri: &Uri, list: &List<C>, next: Option<&str>, mut response: Response) -> Response {
    let Some(next) = next else { return response };
    let replies = if list.replies { "&replies=true" } else { "" };
    let link = format!("<{}?limit={}{replies}&cursor={next}>; rel=\"next\"", uri.path(), list.limit);
    if let Ok(link) = HeaderValue::try_from(link) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        if let Some(phase) = error.rebuilding() {
            let name = phase.name();
            let told = format!("The {name} are being built again from the change log. /ready says how far that is.");
            return Kind::Rebuilding.because(told);
        }
        tracing::error!(%error, "a read failed");
        Kind::ViewsUnavailable.because("A store cannot be read now. Try again in a moment.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(at: Timestamp) -> String {
        serde_json::to_string(&TimeText(at)).unwrap()
    }

    #[test]
    fn times_are_rfc_3339_or_null() {
        assert_eq!(text(0), "\"1970-01-01T00:00:00.000000Z\"");
        assert_eq!(text(1_700_000_000_123_456), "\"2023-11-14T22:13:20.123456Z\"");
        assert_eq!(text(-1), "\"1969-12-31T23:59:59.999999Z\"");
        assert_eq!(text(-62_167_219_200_000_000), "\"0000-01-01T00:00:00.000000Z\"");
        for none in [i64::MIN, i64::MAX, i64::MAX - 1, -62_167_219_200_000_001, 300_000_000_000_000_000] {
            assert_eq!(text(none), "null", "{none}");
        }
    }

    #[test]
    fn ids_are_text() {
        assert_eq!(serde_json::to_string(&IdText(i64::MIN)).unwrap(), "\"-9223372036854775808\"");
    }
}
