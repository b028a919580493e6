//! What clients get: JSON in camelCase, 64-bit ids as strings (JavaScript's numbers hold 53 bits), times as RFC 3339 in
//! UTC with microseconds.

mod discovery;
mod flags;
mod notification;
mod thread;
mod tweet;
mod user;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use feedmill_model::{Time, Timestamp};
use feedmill_sinks::read::{Page, TimelineTweet};
use feedmill_sinks::{Profile, ReadError};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::cursor::{self, Cursor};
use crate::problem::{Kind, Problem};
use crate::request::List;
use crate::state::Context;

pub(crate) use discovery::{
    SuggestionBody, SuggestionsBody, TrendingTagBody, TrendingTagsBody, TrendingTweetBody, TrendingTweetsBody,
};
pub(crate) use notification::{NotificationBody, NotificationsBody, UnreadBody};
pub(crate) use thread::{AncestorBody, AncestorsBody, ConversationBody, ReplyBody};
pub(crate) use tweet::{TweetBody, TweetsBody};
pub(crate) use user::{UserBody, UsersBody};

/// The time that a read served, in milliseconds since 1970.
const TIME: HeaderName = HeaderName::from_static("x-feedmill-time");
/// How long ago that was.
const LAG_MS: HeaderName = HeaderName::from_static("x-feedmill-lag-ms");

/// What most pages have at most: they are written without being moved to more room again and again.
const PAGE_BYTES: usize = 16 << 10;

/// The beginning of the year 0000.
const YEAR_0: Timestamp = -62_167_219_200_000_000;

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::try_from(since.as_millis()).unwrap_or(Time::MAX)
}

/// A page as JSON.
fn json(page: &impl Serialize) -> Response {
    let mut bytes = Vec::with_capacity(PAGE_BYTES);
    match serde_json::to_writer(&mut bytes, page) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page could not be written");
            Kind::Internal.because("The page could not be written.").into_response()
        }
    }
}

/// A 64-bit id, written as text.
#[derive(ToSchema)]
#[schema(as = Id, value_type = String, pattern = "^-?[0-9]{1,19}$", example = "111405301760")]
pub(crate) struct IdText(pub i64);

impl Serialize for IdText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A point in time, `null` where it is none that a calendar has: PostgreSQL's infinities, and years of five digits.
#[derive(ToSchema)]
#[schema(as = Time, value_type = Option<String>, format = DateTime)]
pub(crate) struct TimeText(pub Timestamp);

impl Serialize for TimeText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // RFC 3339 knows the years 0000 to 9999; jiff knows earlier ones too.
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(at) if self.0 >= YEAR_0 => serializer.collect_str(&format_args!("{at:.6}")),
            _ => serializer.serialize_none(),
        }
    }
}

/// What was read, with the headers that say as of when.
pub(crate) fn as_of(time: Time, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    let headers = response.headers_mut();
    headers.insert(TIME, HeaderValue::from(time));
    headers.insert(LAG_MS, HeaderValue::from(now_ms().saturating_sub(time)));
    response
}

impl<C: Cursor, const LIST: u8, Q> List<C, LIST, Q> {
    /// A page of the list, with a `Link` (RFC 8288) to the next: `body` is given the cursor of that.
    pub fn answer<B: Serialize>(
        &self,
        time: Time,
        next: Option<&C>,
        body: impl FnOnce(Option<String>) -> B,
    ) -> Response {
        let next = next.and_then(|next| cursor::encode(LIST, next));
        let link = next.as_deref().map(|next| format!("<{}>; rel=\"next\"", self.with_cursor(next)));
        let mut response = as_of(time, json(&body(next)));
        if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
            response.headers_mut().insert(header::LINK, link);
        }
        response
    }
}

impl Context {
    /// A page of tweets.
    pub async fn tweets<C: Cursor, const LIST: u8, Q>(
        &self,
        viewer: Option<i64>,
        list: &List<C, LIST, Q>,
        page: &Page<TimelineTweet, C>,
    ) -> Result<Response, Problem> {
        let flags = self.flags(viewer, &page.items).await?;
        let tweets = page.items.iter().map(|item| TweetBody::from(item).seen(&flags)).collect();
        Ok(list.answer(page.time, page.next.as_ref(), |next_cursor| TweetsBody { tweets, next_cursor }))
    }

    /// A page of users.
    pub async fn users<C: Cursor, const LIST: u8, Q>(
        &self,
        viewer: Option<i64>,
        list: &List<C, LIST, Q>,
        page: &Page<Arc<Profile>, C>,
    ) -> Result<Response, Problem> {
        let flags = self.flags(viewer, &page.items).await?;
        let users = page.items.iter().map(|profile| UserBody::from(profile.as_ref()).seen(&flags)).collect();
        Ok(list.answer(page.time, page.next.as_ref(), |next_cursor| UsersBody { users, next_cursor }))
    }
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
