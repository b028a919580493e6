//! What a client is told when something goes wrong: problem documents of RFC 9457.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use utoipa::openapi::{Content, Ref, RefOr, Response as Documented, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

/// The media type of problem documents.
const PROBLEM: &str = "application/problem+json";

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
    /// What is looked for cannot be understood.
    InvalidQuery,
    /// The consistency token was not given out for this database.
    InvalidConsistencyToken,
    /// A field of a registration breaks its rule.
    InvalidField,
    /// The content of a tweet breaks its rule.
    InvalidContent,
    /// The idempotency key cannot be one.
    InvalidIdempotencyKey,
    /// The idempotency key came with another request before.
    IdempotencyKeyReused,
    /// A request with the same idempotency key is being done.
    IdempotencyKeyInUse,
    /// No valid token of a user came with the request.
    Unauthenticated,
    /// Name or password is wrong.
    InvalidCredentials,
    /// It is not the password of the account.
    WrongPassword,
    /// It was changed since it was read.
    PreconditionFailed,
    /// Name or address is taken.
    Taken,
    /// There is no such user, or not any more.
    UserNotFound,
    /// There is no such tweet, or not any more.
    TweetNotFound,
    /// Nobody asks to follow, or not any more.
    FollowRequestNotFound,
    /// It is somebody else's.
    NotYours,
    /// It is there, but not for this viewer.
    NotVisible,
    /// One of the two blocks the other.
    Blocked,
    /// What a protected account wrote stays with its followers.
    AuthorProtected,
    /// Nobody follows themselves.
    FollowsOneself,
    /// Nobody blocks or mutes themselves.
    Oneself,
    /// The views have not reached the write of the consistency token yet.
    NotYetVisible,
    /// The system is starting.
    Starting,
    /// The process ends, and others take over.
    Stopping,
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
    /// More requests than one may send in a minute.
    RateLimited,
    /// More requests than can be served at a time.
    Overloaded,
    /// The path and query are too long.
    UriTooLong,
    /// The user has as many streams as one may have.
    TooManyStreams,
    /// This instance has as many streams as it may have.
    NoStreamLeft,
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
            Kind::InvalidQuery => (Is::BAD_REQUEST, "invalid-query", "The query cannot be understood"),
            Kind::InvalidConsistencyToken => {
                (Is::BAD_REQUEST, "invalid-consistency-token", "The consistency token was not given out here")
            }
            Kind::InvalidField => (Is::UNPROCESSABLE_ENTITY, "invalid-field", "A field breaks its rule"),
            Kind::InvalidContent => (Is::UNPROCESSABLE_ENTITY, "invalid-content", "The content breaks its rule"),
            Kind::InvalidIdempotencyKey => {
                (Is::BAD_REQUEST, "invalid-idempotency-key", "The idempotency key cannot be one")
            }
            Kind::IdempotencyKeyReused => (
                Is::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "The idempotency key came with another request before",
            ),
            Kind::IdempotencyKeyInUse => {
                (Is::CONFLICT, "idempotency-key-in-use", "A request with this idempotency key is being done")
            }
            Kind::Unauthenticated => (Is::UNAUTHORIZED, "unauthenticated", "A valid token is needed"),
            Kind::InvalidCredentials => (Is::UNAUTHORIZED, "invalid-credentials", "Name or password is wrong"),
            Kind::WrongPassword => (Is::FORBIDDEN, "wrong-password", "The password is wrong"),
            Kind::PreconditionFailed => (Is::PRECONDITION_FAILED, "precondition-failed", "It was changed since"),
            Kind::Taken => (Is::CONFLICT, "taken", "It is taken"),
            Kind::UserNotFound => (Is::NOT_FOUND, "user-not-found", "There is no such user"),
            Kind::TweetNotFound => (Is::NOT_FOUND, "tweet-not-found", "There is no such tweet"),
            Kind::FollowRequestNotFound => {
                (Is::NOT_FOUND, "follow-request-not-found", "There is no such request to follow")
            }
            Kind::NotYours => (Is::FORBIDDEN, "not-yours", "It is somebody else's"),
            Kind::NotVisible => (Is::FORBIDDEN, "not-visible", "It is not visible to you"),
            Kind::Blocked => (Is::FORBIDDEN, "blocked", "One of the two accounts blocks the other"),
            Kind::AuthorProtected => (Is::FORBIDDEN, "author-protected", "The author is protected"),
            Kind::FollowsOneself => (Is::UNPROCESSABLE_ENTITY, "follows-oneself", "Nobody follows themselves"),
            Kind::Oneself => (Is::UNPROCESSABLE_ENTITY, "oneself", "Nobody does this to themselves"),
            Kind::NotYetVisible => (Is::SERVICE_UNAVAILABLE, "not-yet-visible", "The write is not visible yet"),
            Kind::Starting => (Is::SERVICE_UNAVAILABLE, "starting", "The system is starting"),
            Kind::Stopping => (Is::SERVICE_UNAVAILABLE, "stopping", "The process is stopping"),
            Kind::Rebuilding => (Is::SERVICE_UNAVAILABLE, "rebuilding", "Views are being built again"),
            Kind::DatabaseUnavailable => {
                (Is::SERVICE_UNAVAILABLE, "database-unavailable", "The database cannot take this now")
            }
            Kind::ViewsUnavailable => (Is::SERVICE_UNAVAILABLE, "views-unavailable", "The views cannot be read now"),
            Kind::Busy => (Is::SERVICE_UNAVAILABLE, "busy", "Too many requests of this kind wait"),
            Kind::TimedOut => (Is::SERVICE_UNAVAILABLE, "timed-out", "The request took too long"),
            Kind::RateLimited => (Is::TOO_MANY_REQUESTS, "rate-limited", "Too many requests in too little time"),
            Kind::Overloaded => (Is::SERVICE_UNAVAILABLE, "overloaded", "Too many requests are under way"),
            Kind::UriTooLong => (Is::URI_TOO_LONG, "uri-too-long", "The path and query are too long"),
            Kind::TooManyStreams => (Is::TOO_MANY_REQUESTS, "too-many-streams", "Too many streams of one user"),
            Kind::NoStreamLeft => (Is::SERVICE_UNAVAILABLE, "no-stream-left", "Too many streams are open here"),
            Kind::Internal => (Is::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side"),
        }
    }

    /// A problem of this kind; `detail` says what is wrong and what to do.
    pub fn because(self, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem { kind: self, detail: detail.into(), members: None, retry_after: None }
    }
}

/// A problem document.
#[derive(Debug)]
pub struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    members: Option<Box<Map<String, Value>>>,
    retry_after: Option<u64>,
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

    /// Says after how many seconds it may be tried again.
    pub fn retry_after(self, seconds: u64) -> Self {
        Problem { retry_after: Some(seconds), ..self }
    }

    /// What kind it is.
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
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
        let unavailable = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        if let Some(seconds) = self.retry_after.or(unavailable) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"feedmill\""));
        }
        response
    }
}

/// A problem document (RFC 9457), as it is described to clients. Some kinds have members beside these.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "it is the form of what `into_response` writes")]
pub(crate) struct ProblemBody {
    /// A path that names the kind of problem.
    #[schema(example = "/problems/tweet-not-found")]
    r#type: String,
    /// The kind of problem, for people.
    #[schema(example = "There is no such tweet")]
    title: String,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599, example = 404)]
    status: u16,
    /// What is wrong with this request, and what to do.
    detail: String,
    /// The kind of problem, for programs: the end of `type`.
    #[schema(pattern = "^[a-z0-9-]+$", example = "tweet-not-found")]
    error: String,
}

/// What every operation may answer instead.
pub(crate) struct Failed;

impl IntoResponses for Failed {
    fn responses() -> std::collections::BTreeMap<String, RefOr<Documented>> {
        let content = Content::new(Some(Ref::from_schema_name("Problem")));
        let response = ResponseBuilder::new().description("It was not done: a problem document says why.");
        [("default".to_owned(), response.content(PROBLEM, content).build().into())].into()
    }
}
