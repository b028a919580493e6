//! Sessions: how long one stays signed in, and how that ends.
//!
//! ```text
//!   login ──► access token  (JWT, minutes)  ── names the session, and is checked without PostgreSQL
//!         └─► refresh token (opaque, days)  ── used once: the next pair comes for it
//!
//!   logout, new password, account deleted, ──► sessions.revoked_at ──► every instance asks each second ──► Revoked
//!   old refresh token used again                                       (this one knows at once)
//! ```
//!
//! An access token is good while its signature and time hold and its session is not in [`Revoked`]. That set has to
//! remember a session only until the last access token of it has expired; what it knows goes on to count while
//! PostgreSQL is away. It is bounded: before it would outgrow its bound it is emptied, and every token signed until then
//! is refused instead, which makes each client refresh, and PostgreSQL knows who may. What ended before that needs not be
//! remembered any more, and never empties it again.
//!
//! A refresh token names its session and has two secrets, of which PostgreSQL has the hashes: that of the session's
//! *family*, which stays, and one that each use replaces. Who has the family's but an old other one has a token that was
//! used before, by its owner or by a thief: the session ends, and both have to sign in again. Who has neither learns and
//! changes nothing. The secrets are random and long, so that a plain hash of them cannot be searched for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::RwLock;
use rand::TryRngCore;
use rand::rngs::OsRng;
use ring::digest;

use crate::database::{Database, DatabaseError, column};
use crate::keys::{Bearer, LEEWAY_S};
use crate::problem::{Kind, Problem};

/// Bytes of each secret.
const SECRET_BYTES: usize = 16;
/// Session, family, secret.
const TOKEN_BYTES: usize = 8 + 2 * SECRET_BYTES;
/// Sessions that are remembered as revoked.
const REVOKED_MAX: usize = 1_000_000;
/// How long a transaction that revokes may take to commit: what an earlier question may have missed.
const COMMIT_MAX: Duration = Duration::from_secs(60);

/// How long a statement of ours that revokes may wait for the row of a session.
const STATEMENT_MAX: Duration = Duration::from_secs(10);

/// Sessions that were revoked lately, the latest first, and whether that was within the last `$3` milliseconds.
const REVOKED: &str = "
    SELECT id, revoked_at > now() - $3::bigint * interval '1 millisecond'
    FROM sessions WHERE revoked_at > now() - $1::bigint * interval '1 millisecond'
    ORDER BY revoked_at DESC LIMIT $2";

/// What renews a session.
pub(crate) struct RefreshToken {
    pub session: i64,
    family: [u8; SECRET_BYTES],
    secret: [u8; SECRET_BYTES],
}

impl RefreshToken {
    /// The secrets of a new session, which has no id yet.
    pub fn new() -> Result<Self, Problem> {
        let mut token = RefreshToken { session: 0, family: [0; SECRET_BYTES], secret: [0; SECRET_BYTES] };
        fill(&mut token.family)?;
        fill(&mut token.secret)?;
        Ok(token)
    }

    /// The one that comes after this one.
    pub fn next(&self) -> Result<Self, Problem> {
        let mut secret = [0; SECRET_BYTES];
        fill(&mut secret)?;
        Ok(RefreshToken { secret, ..*self })
    }

    /// As it is given out.
    pub fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode([&self.session.to_be_bytes()[..], &self.family, &self.secret].concat())
    }

    /// Reads what was given out; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; TOKEN_BYTES] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (session, secrets) = bytes.split_first_chunk()?;
        let (family, secret) = secrets.split_first_chunk()?;
        Some(RefreshToken { session: i64::from_be_bytes(*session), family: *family, secret: secret.try_into().ok()? })
    }

    /// The hashes of the family's secret and of its own, as PostgreSQL has them.
    pub fn hashes(&self) -> (Vec<u8>, Vec<u8>) {
        let hash = |secret: &[u8]| digest::digest(&digest::SHA256, secret).as_ref().to_vec();
        (hash(&self.family), hash(&self.secret))
    }
}

fn fill(secret: &mut [u8]) -> Result<(), Problem> {
    OsRng.try_fill_bytes(secret).map_err(|error| {
        tracing::error!(%error, "the system has no random bytes");
        Kind::Internal.because("The session could not be signed.")
    })
}

/// Sessions that were revoked while an access token of theirs may still be in use.
pub(crate) struct Revoked {
    /// For how long one is remembered.
    memory: Duration,
    most: usize,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    /// When each may be forgotten.
    sessions: HashMap<i64, Instant>,
    /// Tokens signed before, in seconds since 1970, are refused.
    refused_before: u64,
    /// When it was emptied for that.
    emptied: Option<Instant>,
    /// When PostgreSQL was last asked.
    asked: Option<Instant>,
}

impl Revoked {
    /// None yet; access tokens hold for `access`.
    pub fn new(access: Duration) -> Self {
        Revoked::bounded(access, REVOKED_MAX)
    }

    fn bounded(access: Duration, most: usize) -> Self {
        Revoked { memory: access + Duration::from_secs(LEEWAY_S) + COMMIT_MAX, most, known: RwLock::default() }
    }

    /// Whether the session of a token has ended.
    pub fn has(&self, bearer: &Bearer) -> bool {
        let known = self.known.read();
        bearer
            .session
            .is_some_and(|session| bearer.signed_at < known.refused_before || known.sessions.contains_key(&session))
    }

    /// These sessions have ended.
    pub fn add(&self, sessions: impl IntoIterator<Item = i64>) {
        let forgotten = Instant::now() + self.memory;
        let mut known = self.known.write();
        for session in sessions {
            known.sessions.entry(session).or_insert(forgotten);
        }
        if known.sessions.len() > self.most {
            known.sessions.clear();
            // Of those that are signed within this second it is not known which came first.
            known.refused_before = jsonwebtoken::get_current_timestamp() + 1;
            known.emptied = Some(Instant::now());
            tracing::warn!(most = self.most, "more sessions ended than are remembered: all clients have to refresh");
        }
    }

    /// Asks PostgreSQL which have ended since it was last asked, and forgets those of which no token holds any more.
    pub async fn ask(&self, database: &Database) -> Result<(), DatabaseError> {
        let asked = Instant::now();
        let (since, new) = self.spans();
        let ms = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let most = i64::try_from(self.most).unwrap_or(i64::MAX).saturating_add(1);
        let rows = database.query(REVOKED, &[&ms(since), &most, &ms(new)]).await?;
        let sessions = rows.iter().map(|row| Ok((column(row, 0)?, column(row, 1)?)));
        self.learn(sessions.collect::<Result<_, DatabaseError>>()?);
        let mut known = self.known.write();
        known.sessions.retain(|_, forgotten| *forgotten > asked);
        known.asked = Some(asked);
        Ok(())
    }

    /// Since when it is to be asked what has ended, and since when that may be more than is remembered: what ended before
    /// the set was emptied is covered, and is asked for only as far as it may have been missed.
    fn spans(&self) -> (Duration, Duration) {
        let known = self.known.read();
        let since = known.asked.map_or(self.memory, |at| self.memory.min(at.elapsed() + COMMIT_MAX));
        match known.emptied.map(|at| at.elapsed()) {
            Some(emptied) => (since.min(emptied + STATEMENT_MAX), since.min(emptied)),
            None => (since, since),
        }
    }

    /// These sessions have ended; the flag says whether that was after the set was emptied. What was before is remembered
    /// as far as there is room, and leaves some.
    fn learn(&self, sessions: Vec<(i64, bool)>) {
        let (new, covered): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|(_, is_new)| *is_new);
        self.add(new.into_iter().map(|(session, _)| session));
        let forgotten = Instant::now() + self.memory;
        let mut known = self.known.write();
        for (session, _) in covered {
            if known.sessions.len() < self.most / 2 {
                known.sessions.entry(session).or_insert(forgotten);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_token_comes_back_and_each_is_another() {
        let first = RefreshToken { session: -7, ..RefreshToken::new().ok().unwrap() };
        let next = first.next().ok().unwrap();
        let read = RefreshToken::parse(&next.text()).unwrap();
        assert_eq!((read.session, read.hashes()), (-7, next.hashes()));
        assert_eq!(first.hashes().0, next.hashes().0);
        assert_ne!(first.hashes().1, next.hashes().1);
        assert_ne!(first.hashes(), RefreshToken::new().ok().unwrap().hashes());
        for text in ["", "x", "é", &next.text()[1..], &format!("{}A", next.text()), &"A".repeat(1 << 20)] {
            assert!(RefreshToken::parse(text).is_none(), "{text:.80}");
        }
    }

    #[test]
    fn what_was_revoked_is_refused_and_an_operators_token_never() {
        let revoked = Revoked::new(Duration::from_secs(60));
        let signed_at = jsonwebtoken::get_current_timestamp() - 1;
        let of = |session| Bearer { user: 1, session, signed_at, expires: signed_at + 60 };
        revoked.add([5]);
        assert!(revoked.has(&of(Some(5))) && !revoked.has(&of(Some(6))) && !revoked.has(&of(None)));
    }

    #[test]
    fn more_than_can_be_remembered_are_refused_all() {
        let revoked = Revoked::bounded(Duration::from_secs(60), 10);
        let of = |session, signed_at| Bearer { user: 1, session: Some(session), signed_at, expires: signed_at + 60 };
        let now = jsonwebtoken::get_current_timestamp();
        revoked.add(0..10);
        assert!(revoked.has(&of(9, now - 1)) && !revoked.has(&of(10, now - 1)));
        revoked.add([10]);
        assert!((0..20).all(|session| revoked.has(&of(session, now - 1))));
        assert!(!revoked.has(&of(11, now + 60)));
        assert!(revoked.known.read().sessions.is_empty());
    }

    #[test]
    fn what_emptied_the_set_does_so_once() {
        let revoked = Revoked::bounded(Duration::from_secs(60), 10);
        assert_eq!(revoked.spans(), (revoked.memory, revoked.memory));
        revoked.learn((0..11).map(|session| (session, true)).collect());
        let (since, new) = revoked.spans();
        assert!(since < COMMIT_MAX && new < since, "{since:?} {new:?}");
        // They are found again, as of before; whoever has refreshed stays signed in.
        revoked.known.write().refused_before = 1;
        revoked.learn((0..11).map(|session| (session, false)).collect());
        let refused_before = || revoked.known.read().refused_before;
        assert_eq!((refused_before(), revoked.known.read().sessions.len()), (1, 5));
        // What ends from then on counts.
        revoked.learn((20..31).map(|session| (session, true)).collect());
        assert!(refused_before() > 1);
    }
}
