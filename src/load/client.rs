//! A frugal HTTP client: it shares the machine with what it measures.
//!
//! A few keep-alive connections of HTTP/1.1, the most recently used first; no redirects, no cookies, no TLS, no proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use feedmill_api::{CONSISTENCY_TOKEN, Keys};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// An answer takes no longer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// For how long tokens of users are good.
const SESSION: Duration = Duration::from_secs(3_600);

/// The API of the system that is measured.
pub struct Client {
    address: SocketAddr,
    host: HeaderValue,
    keys: Keys,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    /// One for each connection that may be open.
    permits: Semaphore,
}

/// An answer of the API.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The consistency token of a write.
    pub token: Option<HeaderValue>,
    /// The body.
    pub body: Bytes,
}

/// Why there is no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection.
    #[error("could not connect to {address}: {source}")]
    Connect {
        /// To whom.
        address: SocketAddr,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the connection to {address} broke: {source}")]
    Broken {
        /// To whom.
        address: SocketAddr,
        /// What went wrong.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("no answer within {ANSWER_MAX:?}")]
    Late,
    /// An answer that tells of a problem.
    #[error("status {status}: {body}")]
    Status {
        /// HTTP status.
        status: u16,
        /// The problem document.
        body: String,
    },
    /// The request could not be built.
    #[error("the request to {path} cannot be built")]
    Request {
        /// Its path.
        path: String,
    },
}

impl RequestError {
    /// What errors are counted by.
    pub fn kind(&self) -> String {
        match self {
            RequestError::Connect { .. } => "no connection".to_owned(),
            RequestError::Broken { .. } => "connection broke".to_owned(),
            RequestError::Late => "no answer".to_owned(),
            RequestError::Status { status, .. } => format!("status {status}"),
            RequestError::Request { .. } => "bad request".to_owned(),
        }
    }
}

impl Client {
    /// A client of the API that listens on `listen`, with at most so many connections.
    pub fn new(listen: SocketAddr, keys: Keys, connections: usize) -> anyhow::Result<Self> {
        // What listens on all addresses is reached by the machine's own.
        let ip = match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let address = SocketAddr::new(ip, listen.port());
        Ok(Client {
            address,
            host: HeaderValue::try_from(address.to_string())?,
            keys,
            idle: Mutex::new(Vec::new()),
            permits: Semaphore::new(connections),
        })
    }

    /// GET as a user.
    pub async fn get(&self, path: &str, user: Option<i64>) -> Result<Answer, RequestError> {
        self.send(Method::GET, path, user, None, Bytes::new()).await
    }

    /// GET of what is at least as new as the write that gave the token.
    pub async fn get_after(&self, path: &str, user: i64, token: &HeaderValue) -> Result<Answer, RequestError> {
        self.send(Method::GET, path, Some(user), Some(token), Bytes::new()).await
    }

    /// POST of JSON as a user.
    pub async fn post(&self, path: &str, user: i64, json: String) -> Result<Answer, RequestError> {
        self.send(Method::POST, path, Some(user), None, Bytes::from(json)).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        user: Option<i64>,
        token: Option<&HeaderValue>,
        body: Bytes,
    ) -> Result<Answer, RequestError> {
        let request = self.request(method, path, user, token, body);
        let request = request.ok_or_else(|| RequestError::Request { path: path.to_owned() })?;
        let answer = timeout(ANSWER_MAX, self.exchange(request)).await.map_err(|_| RequestError::Late)??;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let body = String::from_utf8_lossy(&answer.body).chars().take(500).collect();
        Err(RequestError::Status { status: answer.status, body })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        user: Option<i64>,
        token: Option<&HeaderValue>,
        body: Bytes,
    ) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.host);
        if let Some(user) = user {
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", self.keys.token_for(user, SESSION)?)).ok()?;
            bearer.set_sensitive(true);
            request = request.header(AUTHORIZATION, bearer);
        }
        if let Some(token) = token {
            request = request.header(CONSISTENCY_TOKEN, token);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        request.body(Full::new(body)).ok()
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, RequestError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await.map_err(|_| RequestError::Late)?;
        let broken = |source| RequestError::Broken { address: self.address, source };
        let mut connection = self.connection().await?;
        let response = connection.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(broken)?.to_bytes();
        self.idle.lock().push(connection);
        Ok(Answer { status: head.status.as_u16(), token: head.headers.get(CONSISTENCY_TOKEN).cloned(), body })
    }

    /// An open connection: the last one that was used, or a new one.
    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, RequestError> {
        loop {
            let Some(mut idle) = self.idle.lock().pop() else { break };
            // One that the server has closed is never ready again.
            if idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let connect = |source| RequestError::Connect { address: self.address, source };
        let stream = TcpStream::connect(self.address).await.map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            handshake.map_err(|source| RequestError::Broken { address: self.address, source })?;
        // It ends when the sender is dropped; what goes wrong is seen by the sender.
        tokio::spawn(connection);
        Ok(sender)
    }
}
