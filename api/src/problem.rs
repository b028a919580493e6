//! What a client is told when something goes wrong: problem documents of RFC 9457.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// A kind of problem. Its code is stable: clients tell problems apart by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No route has this path.
    NotFound,
    /// The path has no such method.
    MethodNotAllowed,
    /// The body is no JSON, or could not be read.
    MalformedBody,
    /// The body does not say that it is JSON.
    UnsupportedMediaType,
    /// The body is too large.
    BodyTooLarge,
    /// The body is JSON, but not what is expected here.
    InvalidBody,
    /// The path or query cannot be read.
    MalformedRequest,
    /// An id is not a 64-bit number.
    InvalidId,
    /// `limit` is out of range.
    InvalidLimit,
    /// `cursor` was not given out by this list.
    InvalidCursor,
    /// The consistency token was not given out for this database.
    InvalidConsistencyToken,
    /// A field of a registration breaks its rule.
    InvalidField,
    /// The content of a tweet breaks its rule.
    InvalidContent,
    /// No valid token of a user came with the request.
    Unauthenticated,
    /// Name or password is wrong.
    InvalidCredentials,
    /// Name or address is taken.
    Taken,
    /// There is no such user, or not any more.
    UserNotFound,
    /// There is no such tweet, or not any more.
    TweetNotFound,
    /// It is somebody else's.
    NotYours,
    /// It is there, but not for this viewer.
    NotVisible,
    /// One of the two blocks the other.
    Blocked,
    /// Nobody follows themselves.
    FollowsOneself,
    /// The views have not reached the write of the consistency token yet.
    NotYetVisible,
    /// The system is starting.
    Starting,
    /// Views that are needed are being built again.
    Rebuilding,
    /// PostgreSQL cannot be reached, or is overloaded.
    DatabaseUnavailable,
    /// A store of the views cannot be read.
    ViewsUnavailable,
    /// Too many passwords wait to be checked.
    Busy,
    /// The request took too long.
    TimedOut,
    /// A defect of ours.
    Internal,
}

impl Kind {
    /// Status, code, title.
    const fn parts(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as Is;
        match self {
            Kind::NotFound => (Is::NOT_FOUND, "not-found", "There is nothing at this path"),
            Kind::MethodNotAllowed => (Is::METHOD_NOT_ALLOWED, "method-not-allowed", "The path has no such method"),
            Kind::MalformedBody => (Is::BAD_REQUEST, "malformed-body", "The body cannot be read"),
            Kind::UnsupportedMediaType => {
                (Is::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The body must be application/json")
            }
            Kind::BodyTooLarge => (Is::PAYLOAD_TOO_LARGE, "body-too-large", "The body is too large"),
            Kind::InvalidBody => (Is::UNPROCESSABLE_ENTITY, "invalid-body", "The body is not what is expected here"),
            Kind::MalformedRequest => (Is::BAD_REQUEST, "malformed-request", "The path or query cannot be read"),
            Kind::InvalidId => (Is::BAD_REQUEST, "invalid-id", "An id is not a 64-bit number"),
            Kind::InvalidLimit => (Is::BAD_REQUEST, "invalid-limit", "The limit is out of range"),
            Kind::InvalidCursor => (Is::BAD_REQUEST, "invalid-cursor", "The cursor was not given out by this list"),
            Kind::InvalidConsistencyToken => {
                (Is::BAD_REQUEST, "invalid-consistency-token", "The consistency token was not given out here")
            }
            Kind::InvalidField => (Is::UNPROCESSABLE_ENTITY, "invalid-field", "A field breaks its rule"),
            Kind::InvalidContent => (Is::UNPROCESSABLE_ENTITY, "invalid-content", "The content breaks its rule"),
            Kind::Unauthenticated => (Is::UNAUTHORIZED, "unauthenticated", "A valid token is needed"),
            Kind::InvalidCredentials => (Is::UNAUTHORIZED, "invalid-credentials", "Name or password is wrong"),
            Kind::Taken => (Is::CONFLICT, "taken", "It is taken"),
            Kind::UserNotFound => (Is::NOT_FOUND, "user-not-found", "There is no such user"),
            Kind::TweetNotFound => (Is::NOT_FOUND, "tweet-not-found", "There is no such tweet"),
            Kind::NotYours => (Is::FORBIDDEN, "not-yours", "It is somebody else's"),
            Kind::NotVisible => (Is::FORBIDDEN, "not-visible", "It is not visible to you"),
            Kind::Blocked => (Is::FORBIDDEN, "blocked", "One of the two accounts blocks the other"),
            Kind::FollowsOneself => (Is::UNPROCESSABLE_ENTITY, "follows-oneself", "Nobody follows themselves"),
            Kind::NotYetVisible => (Is::SERVICE_UNAVAILABLE, "not-yet-visible", "The write is not visible yet"),
            Kind::Starting => (Is::SERVICE_UNAVAILABLE, "starting", "The system is starting"),
            Kind::Rebuilding => (Is::SERVICE_UNAVAILABLE, "rebuilding", "Views are being built again"),
            Kind::DatabaseUnavailable => {
                (Is::SERVICE_UNAVAILABLE, "database-unavailable", "The database cannot take this now")
            }
            Kind::ViewsUnavailable => (Is::SERVICE_UNAVAILABLE, "views-unavailable", "The views cannot be read now"),
            Kind::Busy => (Is::SERVICE_UNAVAILABLE, "busy", "Too many requests of this kind wait"),
            Kind::TimedOut => (Is::SERVICE_UNAVAILABLE, "timed-out", "The request took too long"),
            Kind::Internal => (Is::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side"),
        }
    }

    /// A problem of this kind; `detail` says what is wrong and what to do.
    pub fn because(self, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem { kind: self, detail: detail.into(), members: None }
    }
}

/// A problem document.
#[derive(Debug)]
pub struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    members: Option<Box<Map<String, Value>>>,
}

impl Problem {
    /// Names the field that is meant.
    pub fn field(self, name: &'static str) -> Self {
        self.with("field", name.into())
    }

    /// Adds a member to the document.
    pub fn with(mut self, name: &'static str, value: Value) -> Self {
        self.members.get_or_insert_default().insert(name.to_owned(), value);
        self
    }

    /// What kind it is.
    #[cfg(test)]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code, title) = self.kind.parts();
        let mut document = json!({
            "type": format!("/problems/{code}"),
            "title": title,
            "status": status.as_u16(),
            "detail": self.detail,
            "error": code,
        });
        if let (Some(members), Some(document)) = (self.members, document.as_object_mut()) {
            document.extend(*members);
        }
        let mut response = (status, document.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"feedmill\""));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
