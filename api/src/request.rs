//! What comes with a request: ids, lists, bodies. Whatever is wrong with them is a problem document.

use std::fmt;
use std::marker::PhantomData;

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Json, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

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
        // One text an id: what the API itself writes.
        let id = text.parse().ok().filter(|id: &i64| id.to_string() == text);
        id.map(Id).ok_or_else(|| Kind::InvalidId.because("An id is a decimal number of 64 bits, such as 111405301760."))
    }
}

/// Which page of a list: `?limit=&cursor=`.
pub(crate) struct List<C> {
    /// The most items.
    pub limit: usize,
    /// Where the page before ended.
    pub cursor: Option<C>,
    /// Whether a user's replies are wanted too: `&replies=true`.
    pub replies: bool,
}

#[derive(Deserialize)]
struct ListQuery {
    limit: Option<String>,
    cursor: Option<String>,
    replies: Option<String>,
}

impl<C: Cursor> FromRequestParts<Shared> for List<C> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Problem> {
        let query = Query::<ListQuery>::from_request_parts(parts, context).await;
        let Query(query) = query.map_err(|rejection| Kind::MalformedRequest.because(rejection.body_text()))?;
        let max = context.settings.page_max;
        let limit = match query.limit {
            None => context.settings.page_default,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=max).contains(limit))
                .ok_or_else(|| Kind::InvalidLimit.because(format!("limit is a number from 1 to {max}.")))?,
        };
        let cursor = query.cursor.map(|text| {
            cursor::decode(&text).ok_or_else(|| {
                Kind::InvalidCursor.because("cursor must be the nextCursor of a page of this list, unaltered.")
            })
        });
        let replies = match query.replies.as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(Kind::MalformedRequest.because("replies is true or false.")),
        };
        Ok(List { limit, cursor: cursor.transpose()?, replies })
    }
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
            kind.because(rejection.body_text())
        })?;
        Ok(Body(body))
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
