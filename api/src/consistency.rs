//! Tokens by which a client reads its own writes.
//!
//! ```text
//!   base64url( form 1 | LSN 8 ) . base64url( HMAC-SHA256( purpose | source identity | form | LSN ) )
//!   base64url( form 2 | LSN 8 | LSN 8 ) . …                     the second of a like that was not visible yet
//! ```
//!
//! What likes bring can be seconds behind all else, when somebody writes very many of them at once. So a token has a position of
//! its own for them, if there is a like among what its client wrote last: only such a one has reads of tweets wait for likes too.
//! Reads of nothing but what likes bring, as of notifications, wait for them whatever the token is.
//!
//! A token is authenticated, because a position that PostgreSQL never had would make readers wait, and capture ask for
//! it, for ever. The source is part of what is authenticated: after a restore or a failover, positions mean something
//! else, and old tokens are refused instead of being misunderstood.

use std::time::Instant;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use feedmill_model::{Lsn, Phase, SourceId, Time};
use tokio::sync::watch;

use crate::keys::Keys;
use crate::own_writes::Written;
use crate::problem::{Kind, Problem};
use crate::reader::Reader;
use crate::state::Context;

/// Header of a write's answer that holds the token, and of a read that is to see the write.
pub const CONSISTENCY_TOKEN: &str = "x-consistency-token";

/// Header of the answer to a write that narrows who may read, when the visibility facts did not have it in time.
const NOT_YET_VISIBLE: HeaderName = HeaderName::from_static("x-feedmill-not-yet-visible");

const HEADER: HeaderName = HeaderName::from_static(CONSISTENCY_TOKEN);
/// The form of the token; another form will be another number.
const FORM: u8 = 1;
/// That of one that likes are waited for with.
const FORM_OF_LIKES: u8 = 2;
/// By how much stream time moves at most while nothing is written: every second.
const IDLE_MS: Time = 1_000;
/// 17 bytes in base64, a point, 32 bytes in base64.
const TOKEN_BYTES_MAX: usize = 23 + 1 + 43;

/// What a read is to hold: everything that was committed before these positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Awaited {
    /// In what is read.
    pub lsn: Lsn,
    /// In what likes bring; 0 if that need not be waited for.
    pub likes: Lsn,
}

impl Awaited {
    /// Both.
    pub fn and(self, other: Awaited) -> Self {
        Awaited { lsn: self.lsn.max(other.lsn), likes: self.likes.max(other.likes) }
    }
}

/// Makes and reads tokens.
pub(crate) struct ConsistencyTokens {
    keys: Keys,
    /// The source whose positions they tell.
    source: watch::Receiver<SourceId>,
}

impl ConsistencyTokens {
    /// Tokens for positions of `source`, whichever it is at the moment.
    pub fn new(keys: Keys, source: watch::Receiver<SourceId>) -> Self {
        ConsistencyTokens { keys, source }
    }

    /// The source whose positions they tell at the moment.
    pub fn source(&self) -> watch::Ref<'_, SourceId> {
        self.source.borrow()
    }

    /// The token for what is to be held; `None` if the library refuses to sign.
    pub fn token(&self, Awaited { lsn, likes }: Awaited) -> Option<String> {
        let mut position = vec![if likes == Lsn(0) { FORM } else { FORM_OF_LIKES }];
        position.extend(lsn.0.to_be_bytes());
        if likes != Lsn(0) {
            position.extend(likes.0.to_be_bytes());
        }
        let code = self.keys.code(&self.message(&position))?;
        Some(format!("{}.{code}", URL_SAFE_NO_PAD.encode(position)))
    }

    /// What `token` is for; `None` for what is no token of this source.
    pub fn awaited(&self, token: &str) -> Option<Awaited> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (position, code) = token.split_once('.')?;
        let position = URL_SAFE_NO_PAD.decode(position).ok()?;
        if !self.keys.confirms(&self.message(&position), code) {
            return None;
        }
        let (form, positions) = position.split_first()?;
        let (positions, rest) = positions.as_chunks();
        match (*form, positions, rest) {
            (FORM, [lsn], []) => Some(Awaited { lsn: lsn_of(lsn), likes: Lsn(0) }),
            (FORM_OF_LIKES, [lsn, likes], []) => Some(Awaited { lsn: lsn_of(lsn), likes: lsn_of(likes) }),
            _ => None,
        }
    }

    fn message(&self, position: &[u8]) -> Vec<u8> {
        let purpose = format!("feedmill consistency token\0{}\0", *self.source.borrow());
        [purpose.as_bytes(), position].concat()
    }
}

fn lsn_of(bytes: &[u8; 8]) -> Lsn {
    Lsn(u64::from_be_bytes(*bytes))
}

impl Context {
    /// What the token is for that came with a request, if one came.
    pub fn asked_for(&self, headers: &HeaderMap) -> Result<Option<Awaited>, Problem> {
        let Some(token) = headers.get(HEADER) else { return Ok(None) };
        let awaited = token.to_str().ok().and_then(|token| self.tokens.awaited(token)).ok_or_else(|| {
            Kind::InvalidConsistencyToken.because(
                "X-Consistency-Token must be one that a write returned, and not from before the database was restored \
                 or failed over. Send the request without it.",
            )
        })?;
        Ok(Some(awaited))
    }

    /// Waits until `phase` of the views holds the write whose token came with the request; and for what the reader wrote a
    /// moment ago, but then what is there is served anyway.
    pub async fn catch_up<V>(&self, reader: &Reader<V>, phase: Phase) -> Result<(), Problem> {
        self.hold(reader, phase, |awaited| awaited.lsn, Instant::now() + self.settings.read_wait).await
    }

    /// The same for a read that shows tweets, and with them what likes bring.
    pub async fn catch_up_with_likes<V>(&self, reader: &Reader<V>, phase: Phase) -> Result<(), Problem> {
        let until = Instant::now() + self.settings.read_wait;
        self.hold(reader, phase, |awaited| awaited.lsn, until).await?;
        self.hold(reader, Phase::Reactions, |awaited| awaited.likes, until).await
    }

    async fn hold<V>(
        &self,
        reader: &Reader<V>,
        phase: Phase,
        of: fn(Awaited) -> Lsn,
        until: Instant,
    ) -> Result<(), Problem> {
        let [must, shall] = [reader.must_hold, reader.shall_hold].map(|awaited| awaited.map_or(Lsn(0), of));
        if must > Lsn(0) && !self.holds(phase, must, until).await {
            let told = "The views have not reached the write of X-Consistency-Token yet. Ask again.";
            return Err(Kind::NotYetVisible.because(told));
        }
        // What cannot come in time would only be in the way of those who wait for what can.
        if shall > must && !self.is_far_behind(phase) {
            self.holds(phase, shall, until).await;
        }
        Ok(())
    }

    /// Whether `phase` is further behind than a read waits, also where the rows have moved by an idle moment at once.
    fn is_far_behind(&self, phase: Phase) -> bool {
        let progress = self.views.progress();
        let [newest, own] = [Phase::Rows, phase].map(|phase| progress.position(phase).time);
        u128::from(newest.saturating_sub(own.saturating_add(IDLE_MS))) > self.settings.read_wait.as_millis()
    }

    /// Waits until `phase` holds everything before `lsn`; `false` when that is not so at `until`.
    async fn holds(&self, phase: Phase, lsn: Lsn, until: Instant) -> bool {
        let (progress, left) = (self.views.progress(), || until.saturating_duration_since(Instant::now()));
        if !progress.reached(phase, lsn, left()).await {
            return false;
        }
        // What search was handed is found a moment later.
        match progress.time_of(lsn).filter(|_| phase == Phase::Search) {
            Some(time) => self.search.reached(time, left()).await,
            None => true,
        }
    }

    /// The answer to a write after which the source's log ended at `lsn`.
    pub fn written(&self, lsn: Lsn, answer: impl IntoResponse) -> Response {
        self.answered(Awaited { lsn, likes: Lsn(0) }, answer)
    }

    /// The same for a write of a like.
    pub fn liked(&self, lsn: Lsn, answer: impl IntoResponse) -> Response {
        self.answered(Awaited { lsn, likes: lsn }, answer)
    }

    fn answered(&self, written: Awaited, answer: impl IntoResponse) -> Response {
        let mut response = answer.into_response();
        response.extensions_mut().insert(Written(written));
        self.give_token(&mut response, written);
        response
    }

    /// Has an answer carry the token for what was written.
    pub fn give_token(&self, response: &mut Response, written: Awaited) {
        let token = self.tokens.token(written);
        match token.and_then(|token| HeaderValue::try_from(token).ok()) {
            Some(token) => drop(response.headers_mut().insert(HEADER, token)),
            None => tracing::error!("a consistency token could not be signed"),
        }
    }

    /// The same for a write that narrows who may read: it is answered once the visibility facts of this instance have it.
    /// When they are late it is answered anyway, for it is done, and says so.
    pub async fn narrowed(&self, lsn: Lsn, answer: impl IntoResponse) -> Response {
        let mut response = self.written(lsn, answer);
        if !self.views.progress().reached(Phase::Facts, lsn, self.settings.narrowing_wait).await {
            tracing::warn!("the visibility facts are late: a write that narrows who may read was answered before them");
            response.headers_mut().insert(NOT_YET_VISIBLE, HeaderValue::from_static("true"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(system: u64) -> SourceId {
        SourceId { system, timeline: 1, slot: "feedmill".to_owned() }
    }

    #[test]
    fn a_token_holds_its_position_for_its_source_alone() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::load_or_create(&folder.path().join("keys")).unwrap();
        let (now, is) = watch::channel(source(1));
        let tokens = ConsistencyTokens::new(keys.clone(), is);
        for (lsn, likes) in [(0, 0), (0x16_B374_D848, 0), (0x16_B374_D848, 7), (u64::MAX, 0), (u64::MAX, u64::MAX)] {
            let awaited = Awaited { lsn: Lsn(lsn), likes: Lsn(likes) };
            let token = tokens.token(awaited).unwrap();
            assert!(token.len() <= TOKEN_BYTES_MAX);
            assert_eq!(tokens.awaited(&token), Some(awaited));
            for other in [source(2), SourceId { timeline: 2, ..source(1) }, SourceId { slot: "x".into(), ..source(1) }]
            {
                now.send_replace(other);
                assert_eq!(tokens.awaited(&token), None);
            }
            now.send_replace(source(1));
        }
    }

    #[test]
    fn no_altered_token_passes() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::load_or_create(&folder.path().join("keys")).unwrap();
        let tokens = ConsistencyTokens::new(keys.clone(), watch::channel(source(1)).1);
        let token = tokens.token(Awaited { lsn: Lsn(100), likes: Lsn(0) }).unwrap();
        for at in 0..token.len() {
            let mut altered = token.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(tokens.awaited(std::str::from_utf8(&altered).unwrap()), None, "at {at}");
        }
        for text in ["", ".", "é", &token[1..], &format!("{token}=")] {
            assert_eq!(tokens.awaited(text), None, "{text}");
        }
        // Neither is a user's token, although the same key signs both.
        let (_, signature) = token.split_once('.').unwrap();
        assert!(!keys.confirms(b"", signature));
    }
}
