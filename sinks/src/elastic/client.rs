//! One request to the server, and what came of it.
//!
//! A failure is *passing* when asking again later may cure it, whether the server is away, busy, blocked or does not let us
//! in; it is *refused* when the request itself cannot be.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use elasticsearch::auth::Credentials;
use elasticsearch::cert::{Certificate, CertificateValidation};
pub(super) use elasticsearch::http::Method;
use elasticsearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue};
use elasticsearch::http::transport::{SingleNodeConnectionPool, Transport, TransportBuilder};
use serde_json::Value;

use super::{ElasticOpenError, ElasticSettings};

/// How long one request may take. A bulk of many documents on a slow disk takes seconds.
const REQUEST_MAX: Duration = Duration::from_secs(20);
/// How much of an answer is told.
const REASON_CHARS_MAX: usize = 300;

/// Why a request has not been answered as was wished.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Asking again may cure it.
    #[error("{0}")]
    Passing(String),
    /// What was asked for is not there.
    #[error("{0}")]
    Missing(String),
    /// Something else was there first.
    #[error("{0}")]
    Conflict(String),
    /// The request is too large.
    #[error("{0}")]
    TooLarge(String),
    /// The server refuses the request.
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    /// The failure of an answer with this status.
    fn of(status: u16, what: &str, body: &[u8]) -> Failure {
        let told = format!("{what}: {status} {}", reason(body));
        match status {
            404 => Failure::Missing(told),
            409 => Failure::Conflict(told),
            413 => Failure::TooLarge(told),
            // Who we are, and blocks of an index, can be mended at the server.
            401 | 403 | 408 | 429 | 500.. => Failure::Passing(told),
            _ => Failure::Refused(told),
        }
    }
}

/// What lies in `answer` at a JSON pointer; null where nothing does.
pub(super) fn at<'a>(answer: &'a Value, pointer: &str) -> &'a Value {
    answer.pointer(pointer).unwrap_or(&Value::Null)
}

/// The hits of a search.
pub(super) fn hits(answer: &Value) -> &[Value] {
    at(answer, "/hits/hits").as_array().map(Vec::as_slice).unwrap_or_default()
}

/// What the server says went wrong.
fn reason(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(told) => match (at(&told, "/error/type"), at(&told, "/error/reason")) {
            (Value::String(kind), Value::String(reason)) => format!("{kind}: {reason}"),
            _ => at(&told, "/error").to_string(),
        },
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars().take(REASON_CHARS_MAX).collect()
}

/// An error with all that caused it: the first alone says little.
fn chain(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !told.contains(&next) {
            told = format!("{told}: {next}");
        }
        cause = error.source();
    }
    told
}

/// A connection to the server, which is shared.
#[derive(Clone)]
pub(super) struct Client {
    transport: Transport,
}

impl Client {
    /// Asks nothing yet.
    pub fn new(settings: &ElasticSettings) -> Result<Self, ElasticOpenError> {
        let ElasticSettings { address, api_key, authority, .. } = settings;
        let mut builder = TransportBuilder::new(SingleNodeConnectionPool::new(address.url.clone()))
            .disable_proxy()
            .enable_meta_header(false)
            .timeout(REQUEST_MAX);
        if let Some((user, password)) = &address.user {
            builder = builder.auth(Credentials::Basic(user.clone(), password.clone()));
        }
        if let Some(key) = api_key {
            // The library takes it for granted.
            if HeaderValue::try_from(format!("ApiKey {key}")).is_err() {
                return Err(ElasticOpenError::ApiKey);
            }
            builder = builder.auth(Credentials::EncodedApiKey(key.clone()));
        }
        if let Some(file) = authority {
            let failed = |reason: String| ElasticOpenError::Authority { file: file.clone(), reason };
            let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
            let authorities = Certificate::from_pem(&pem).map_err(|error| failed(chain(&error)))?;
            builder = builder.cert_validation(CertificateValidation::Full(authorities));
        }
        let transport = builder.build().map_err(|error| ElasticOpenError::Client { reason: chain(&error) })?;
        Ok(Client { transport })
    }

    /// Asks with a JSON body, unless it is null.
    pub async fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask_within(REQUEST_MAX, method, path, body).await
    }

    /// The same, with another limit.
    pub async fn ask_within(
        &self,
        limit: Duration,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value, Failure> {
        let body = (!body.is_null()).then(|| Bytes::from(body.to_string()));
        let headers = HeaderMap::new();
        let answer = self.send(limit, method, path, headers, body).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| Failure::Passing(format!("{path}: the answer is no JSON: {error}")))
    }

    /// Asks with lines of JSON.
    pub async fn lines(&self, path: &str, lines: Bytes) -> Result<Bytes, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        self.send(REQUEST_MAX, Method::Post, path, headers, Some(lines)).await
    }

    async fn send(
        &self,
        limit: Duration,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Bytes, Failure> {
        let passing = |error: elasticsearch::Error| Failure::Passing(format!("{path}: {}", chain(&error)));
        let sent = self.transport.send(method, path, headers, None::<&()>, body, Some(limit)).await;
        let answer = sent.map_err(passing)?;
        let status = answer.status_code().as_u16();
        let body = answer.bytes().await.map_err(passing)?;
        if (200..300).contains(&status) { Ok(body) } else { Err(Failure::of(status, path, &body)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asking_again_may_cure_is_told_from_what_it_may_not() {
        let of = |status| Failure::of(status, "_bulk", br#"{"error":{"type":"a_kind","reason":"a reason"}}"#);
        for status in [401, 403, 408, 429, 500, 502, 503, 504] {
            assert!(matches!(of(status), Failure::Passing(_)), "{status}");
        }
        assert!(matches!(of(400), Failure::Refused(_)));
        assert!(matches!(
            (of(404), of(409), of(413)),
            (Failure::Missing(_), Failure::Conflict(_), Failure::TooLarge(_))
        ));
        assert_eq!(of(429).to_string(), "_bulk: 429 a_kind: a reason");
        assert_eq!(Failure::of(502, "x", b"<html>").to_string(), "x: 502 <html>");
    }
}
