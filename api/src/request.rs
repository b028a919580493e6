//! What comes with a request: ids, lists, bodies. Whatever is wrong with them is a problem document.

use std::fmt;
use std::marker::PhantomData;

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Json, OriginalUri, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use percent_encoding::percent_decode_str;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::IntoParams;

use crate::cursor::{self, Cursor};
use crate::problem::{Kind, Problem};
use crate::state::Shared;

/// The one parameter of the path, as text.
pub(crate) struct Name(pub String);

impl FromRequestParts<Shared> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, context).await;
        let Path(name) = path.map_err(|rejection| Kind::MalformedRequest.because(rejection.body_text()))?;
        Ok(Name(name))
    }
}

/// The one parameter of the path, as the id of a user or a tweet.
pub(crate) struct Id(pub i64);

impl FromRequestParts<Shared> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Problem> {
        let Name(text) = Name::from_request_parts(parts, context).await?;
        id_of(&text).map(Id).ok_or_else(|| Kind::InvalidId.because(ID_RULE))
    }
}

/// What an id is.
const ID_RULE: &str = "An id is a decimal number of 64 bits, such as 111405301760.";

/// One text an id: what the API itself writes.
fn id_of(text: &str) -> Option<i64> {
    text.parse().ok().filter(|id: &i64| id.to_string() == text)
}

/// The id in a field of a body.
pub(crate) fn id_in(text: &str, field: &'static str) -> Result<i64, Problem> {
    id_of(text).ok_or_else(|| Kind::InvalidField.because(ID_RULE).field(field))
}

/// How many items of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LimitQuery {
    /// The most items.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 100, default = 20)]
    limit: Option<String>,
}

/// Which page of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// The most items of the page.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 100, default = 20)]
    limit: Option<String>,
    /// `nextCursor` of the page before.
    cursor: Option<String>,
}

/// An endpoint that takes nothing more.
#[derive(Deserialize)]
pub(crate) struct NothingMore {}

/// The first items of a list that has no pages, and what else the endpoint takes.
pub(crate) struct Top<Q = NothingMore> {
    /// The most items.
    pub limit: usize,
    /// What else was asked.
    pub query: Q,
}

impl<Q: DeserializeOwned> FromRequestParts<Shared> for Top<Q> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Problem> {
        let LimitQuery { limit } = query(parts)?;
        Ok(Top { limit: limit_of(limit, context)?, query: query(parts)? })
    }
}

/// A page of a list, which is one of [`cursor::list`], and what else the endpoint takes.
pub(crate) struct List<C, const LIST: u8, Q = NothingMore> {
    /// The most items.
    pub limit: usize,
    /// Where the page before ended.
    pub cursor: Option<C>,
    /// What else was asked.
    pub query: Q,
    /// What the client has sent.
    uri: Uri,
}

impl<C: Cursor, const LIST: u8, Q: DeserializeOwned> FromRequestParts<Shared> for List<C, LIST, Q> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Problem> {
        let ListQuery { limit, cursor } = query(parts)?;
        let cursor = cursor.map(|text| cursor::decode(LIST, &text).ok_or_else(not_given_out)).transpose()?;
        let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |OriginalUri(uri)| uri).clone();
        Ok(List { limit: limit_of(limit, context)?, cursor, query: query(parts)?, uri })
    }
}

impl<C, const LIST: u8, Q> List<C, LIST, Q> {
    /// What asks for the page after `cursor`: the request as it was sent, with that cursor.
    pub fn with_cursor(&self, cursor: &str) -> String {
        let is_kept = |pair: &&str| {
            let name = pair.split('=').next().unwrap_or_default();
            !pair.is_empty() && percent_decode_str(name).ne("cursor".bytes())
        };
        let kept = self.uri.query().unwrap_or_default().split('&').filter(is_kept);
        let kept: String = kept.flat_map(|pair| [pair, "&"]).collect();
        format!("{}?{kept}cursor={cursor}", self.uri.path())
    }
}

/// The cursor is none of this list, or of another order of it.
pub(crate) fn not_given_out() -> Problem {
    Kind::InvalidCursor.because("cursor must be the nextCursor of a page of this list, unaltered.")
}

/// What stands in the query.
fn query<Q: DeserializeOwned>(parts: &Parts) -> Result<Q, Problem> {
    let query = Query::<Q>::try_from_uri(&parts.uri);
    Ok(query.map_err(|rejection| Kind::MalformedRequest.because(rejection.body_text()))?.0)
}

fn limit_of(text: Option<String>, context: &Shared) -> Result<usize, Problem> {
    let max = context.settings.page_max;
    let Some(text) = text else { return Ok(context.settings.page_default) };
    let limit = text.parse().ok().filter(|limit| (1..=max).contains(limit));
    limit.ok_or_else(|| Kind::InvalidLimit.because(format!("limit is a number from 1 to {max}.")))
}

/// A body that is a JSON object.
pub(crate) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Shared> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, context: &Shared) -> Result<Self, Problem> {
        let max = context.settings.body_bytes_max;
        let too_large = || Kind::BodyTooLarge.because(format!("The body may have {max} bytes."));
        // Before it is sent, so that a client that sends `Expect: 100-continue` need not send it.
        if announced_bytes(request.headers()).is_some_and(|bytes| bytes > max) {
            return Err(too_large());
        }
        let body = Json::<Object<T>>::from_request(request, context).await;
        let Json(Object(body)) = body.map_err(|rejection: JsonRejection| {
            let kind = match rejection.status() {
                StatusCode::UNSUPPORTED_MEDIA_TYPE => Kind::UnsupportedMediaType,
                StatusCode::PAYLOAD_TOO_LARGE => return too_large(),
                StatusCode::UNPROCESSABLE_ENTITY => Kind::InvalidBody,
                _ => Kind::MalformedBody,
            };
            kind.because(without_values(&rejection.body_text()))
        })?;
        Ok(Body(body))
    }
}

/// What is wrong with a body, without what stood in it: that may be a password, and answers are logged by others.
fn without_values(text: &str) -> String {
    let found = ["invalid type: ", "invalid value: ", "unknown variant "].iter().find_map(|start| text.find(start));
    match (found, text.rfind(", expected")) {
        (Some(start), Some(end)) if start < end => {
            let (before, after) = (text.get(..start).unwrap_or(""), text.get(end..).unwrap_or(""));
            format!("{before}another type or value{after}")
        }
        _ => text.to_owned(),
    }
}

/// How long the body is, if the request says so.
fn announced_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What is an object in JSON. serde would read a struct from an array as well: of its fields, in the order of the code.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members(PhantomData)).map(Object)
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stood_in_a_body_is_not_told() {
        for (text, told) in [
            (
                "password: invalid type: integer `4711`, expected a string at line 1 column 20",
                "password: another type or value, expected a string at line 1 column 20",
            ),
            (
                "kind: unknown variant `4711, expected`, expected one of `a`, `b`",
                "kind: another type or value, expected one of `a`, `b`",
            ),
            ("missing field `username` at line 1 column 2", "missing field `username` at line 1 column 2"),
        ] {
            assert_eq!(without_values(text), told);
        }
    }
}
