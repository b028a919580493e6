//! Conditional reads (RFC 9110, section 13): each answer has an `ETag`, and who has that very answer is told so by 304.
//!
//! The tag is a hash of the body, so it needs no state and is the same at each instance that serves the same. It is a weak
//! one, because the same answer may be sent compressed in different ways. A read costs the server what it costs: what is
//! saved is what is sent.

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use xxhash_rust::xxh3::xxh3_128;

/// A client may keep the answer, and asks whether it still is the answer each time. Nobody between may keep it.
const ASK_EACH_TIME: HeaderValue = HeaderValue::from_static("private, no-cache");
const NEVER: HeaderValue = HeaderValue::from_static("no-store");
const JSON: &[u8] = b"application/json";

/// Tags what is read, and leaves out what the client has.
pub(crate) async fn conditional(request: Request, next: Next) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    // What signs somebody in or says who somebody is, nobody keeps.
    if !is_read || request.uri().path().starts_with("/auth/") {
        return next.run(request).await;
    }
    let known = request.headers().get_all(header::IF_NONE_MATCH).iter().cloned().collect::<Vec<_>>();
    let response = tagged(next.run(request).await).await;
    match response.headers().get(header::ETAG) {
        Some(tag) if known.iter().any(|known| names(known, tag)) => not_modified(response),
        _ => response,
    }
}

/// The answer with its tag, unless it is none that can be kept: an error, a stream, or what says so itself.
async fn tagged(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let headers = &mut parts.headers;
    let is_json = headers.get(header::CONTENT_TYPE).is_some_and(|of| of.as_bytes().starts_with(JSON));
    let is_whole = parts.status == StatusCode::OK && is_json && body.size_hint().exact().is_some();
    if !is_whole || headers.get(header::CACHE_CONTROL) == Some(&NEVER) {
        return Response::from_parts(parts, body);
    }
    headers.append(header::VARY, HeaderValue::from_name(header::AUTHORIZATION));
    headers.entry(header::CACHE_CONTROL).or_insert(ASK_EACH_TIME);
    if headers.contains_key(header::ETAG) {
        return Response::from_parts(parts, body);
    }
    // It is in memory as a whole already.
    let Ok(bytes) = to_bytes(body, usize::MAX).await else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    if let Ok(tag) = HeaderValue::try_from(format!("W/\"{:032x}\"", xxh3_128(&bytes))) {
        headers.insert(header::ETAG, tag);
    }
    Response::from_parts(parts, Body::from(bytes))
}

/// Whether `If-None-Match` names the tag. Both are compared as weak ones.
fn names(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(known), Ok(tag)) = (known.to_str(), tag.to_str()) else { return false };
    let opaque = |tag: &str| tag.trim().strip_prefix("W/").unwrap_or(tag.trim()).to_owned();
    known.trim() == "*" || known.split(',').any(|known| opaque(known) == opaque(tag))
}

/// That it is what the client has.
fn not_modified(response: Response) -> Response {
    let (mut parts, _) = response.into_parts();
    parts.status = StatusCode::NOT_MODIFIED;
    for of_body in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        parts.headers.remove(of_body);
    }
    Response::from_parts(parts, Body::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_named_alone_in_a_list_or_by_a_star() {
        let names = |known: &'static str, tag: &'static str| {
            super::names(&HeaderValue::from_static(known), &HeaderValue::from_static(tag))
        };
        for known in ["W/\"1\"", "\"1\"", " \"0\" , W/\"1\"", "*", " * "] {
            assert!(names(known, "W/\"1\"") && names(known, "\"1\""), "{known}");
        }
        for known in ["", "1", "\"2\"", "W/", "\"1", "w/\"1\"", "\"11\"", ",,,"] {
            assert!(!names(known, "W/\"1\""), "{known}");
        }
    }
}
