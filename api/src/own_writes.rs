//! Where a client's own last write lies, for clients that know nothing of consistency tokens.
//!
//! ```text
//!   write ─► position ─┬─ by its user, in this instance ─┐
//!                      └─ cookie, in the client's jar ───┴─► the client's next reads wait for it, then serve what is there
//! ```
//!
//! It is kept for a moment only. Views follow within milliseconds as a rule; where they do not, because PostgreSQL is away
//! or they are being built again, a read that waited for each of its writes for ever would be worse than one that is late.
//! Whoever must know sends the token: that is a promise, and this is a courtesy. The cookie holds the same token, so that
//! it is good at each instance, and for the source alone that gave it out. It says nothing about who somebody is.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use feedmill_model::{Lsn, Phase, SourceId};
use lru::LruCache;
use parking_lot::RwLock;

use crate::consistency::{Awaited, CONSISTENCY_TOKEN};
use crate::state::{Context, Shared};
use crate::viewer::Viewer;

/// How long a write is waited for.
const KEPT: Duration = Duration::from_secs(30);
/// Users whose last write is kept, at about 100 bytes each.
const USERS_MAX: usize = 100_000;

const COOKIE: &str = "feedmill-consistency";
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The last write of each user who wrote here a moment ago.
pub(crate) struct OwnWrites {
    writes: RwLock<Writes>,
}

struct Writes {
    /// Whose positions they are.
    source: SourceId,
    /// The user who has not written for longest first.
    by_user: LruCache<i64, Write>,
}

#[derive(Clone, Copy)]
struct Write {
    awaited: Awaited,
    at: Instant,
}

impl Write {
    fn is_over(&self) -> bool {
        self.at.elapsed() >= KEPT
    }
}

impl OwnWrites {
    /// Nobody has written to `source` yet.
    pub fn new(source: SourceId) -> Self {
        OwnWrites { writes: RwLock::new(Writes { source, by_user: LruCache::unbounded() }) }
    }

    /// `user` wrote to `source`, and the write lies before these positions. What all views hold up to `held` is forgotten.
    fn wrote(&self, source: &SourceId, user: i64, written: Awaited, held: Lsn) {
        let mut writes = self.writes.write();
        if writes.source != *source {
            *writes = Writes { source: source.clone(), by_user: LruCache::unbounded() };
        }
        let by_user = &mut writes.by_user;
        let awaited = by_user.peek(&user).map_or(written, |before| before.awaited.and(written));
        by_user.put(user, Write { awaited, at: Instant::now() });
        let is_done = |write: &Write| write.awaited.lsn <= held || write.is_over();
        while by_user.len() > USERS_MAX || by_user.peek_lru().is_some_and(|(_, write)| is_done(write)) {
            by_user.pop_lru();
        }
    }

    /// The positions that hold what `user` wrote to `source` a moment ago.
    pub fn of(&self, source: &SourceId, user: i64) -> Option<Awaited> {
        let writes = self.writes.read();
        let write = writes.by_user.peek(&user).filter(|write| writes.source == *source && !write.is_over())?;
        Some(write.awaited)
    }
}

/// The positions that an answer's write lies before.
#[derive(Clone, Copy)]
pub(crate) struct Written(pub Awaited);

/// Who turned out to ask, once that was found out.
#[derive(Clone, Default)]
pub(crate) struct Asker(Arc<OnceLock<Viewer>>);

impl Asker {
    /// It is `viewer`.
    pub fn is(&self, viewer: Viewer) {
        // It is found out once, or twice alike.
        let _ = self.0.set(viewer);
    }
}

/// Keeps the position of a write for whoever made it, and gives it to browsers as a cookie. A like that is not visible yet is
/// waited for with whatever its client writes next.
pub(crate) async fn keep(State(context): State<Shared>, mut request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let source = context.tokens.source().clone();
    let over_tls = context.settings.secure_cookies || came_over_tls(request.headers());
    let sent = request.headers().get(CONSISTENCY_TOKEN).and_then(|token| token.to_str().ok());
    let sent = sent.and_then(|token| context.tokens.awaited(token));
    let before = sent.into_iter().chain(context.of_cookie(request.headers())).fold(Awaited::default(), Awaited::and);
    let asker = Asker::default();
    request.extensions_mut().insert(asker.clone());
    let mut response = next.run(request).await;
    let Some(Written(mut written)) = response.extensions_mut().remove::<Written>() else { return response };
    // One that was on its way while the source changed is of neither: its token may be signed for the wrong one.
    if source != *context.tokens.source() {
        response.headers_mut().remove(CONSISTENCY_TOKEN);
        return response;
    }
    let signed_in = response.extensions_mut().remove::<Viewer>();
    let user = asker.0.get().copied().or(signed_in).map(|Viewer(user)| user);
    let before = user.and_then(|user| context.own_writes.of(&source, user)).map_or(before, |own| own.and(before));
    if before.likes > written.likes.max(context.views.progress().position(Phase::Reactions).lsn) {
        written.likes = before.likes;
        context.give_token(&mut response, written);
    }
    if let Some(user) = user {
        context.own_writes.wrote(&source, user, written, context.held());
    }
    let token = response.headers().get(CONSISTENCY_TOKEN).and_then(|token| token.to_str().ok());
    if let Some(cookie) = token.and_then(|token| HeaderValue::try_from(cookie(token, over_tls)).ok()) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

impl Context {
    /// What all views hold.
    fn held(&self) -> Lsn {
        let progress = self.views.progress();
        Phase::ALL.map(|phase| progress.position(phase).lsn).into_iter().min().unwrap_or_default()
    }

    /// What a read shall hold, of a client that wrote a moment ago: by its user, and by its cookie.
    pub fn own_write(&self, viewer: Option<i64>, headers: &HeaderMap) -> Option<Awaited> {
        let own = viewer.and_then(|viewer| self.own_writes.of(&self.tokens.source(), viewer));
        own.into_iter().chain(self.of_cookie(headers)).reduce(Awaited::and)
    }

    /// What the client's cookie is for. A cookie that says nothing here is none.
    fn of_cookie(&self, headers: &HeaderMap) -> Option<Awaited> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let token = pairs.filter(|(name, _)| *name == COOKIE).map(|(_, token)| token).next();
        token.and_then(|token| self.tokens.awaited(token))
    }
}

/// Whether the client says that it, or a proxy before us, was spoken to by TLS. A lie changes only the liar's own cookie.
fn came_over_tls(headers: &HeaderMap) -> bool {
    headers.get(FORWARDED_PROTO).is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

fn cookie(token: &str, over_tls: bool) -> String {
    let secure = if over_tls { "; Secure" } else { "" };
    format!("{COOKIE}={token}; Path=/api; Max-Age={}; HttpOnly; SameSite=Lax{secure}", KEPT.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(timeline: u32) -> SourceId {
        SourceId { system: 1, timeline, slot: "feedmill".to_owned() }
    }

    fn at(lsn: u64) -> Awaited {
        Awaited { lsn: Lsn(lsn), likes: Lsn(0) }
    }

    #[test]
    fn a_users_last_write_is_kept_until_all_views_hold_it() {
        let writes = OwnWrites::new(source(1));
        writes.wrote(&source(1), 7, at(100), Lsn(0));
        writes.wrote(&source(1), 7, at(90), Lsn(0));
        writes.wrote(&source(1), 8, at(200), Lsn(50));
        assert_eq!([7, 8, 9].map(|user| writes.of(&source(1), user)), [Some(at(100)), Some(at(200)), None]);
        writes.wrote(&source(1), 9, at(300), Lsn(150));
        assert_eq!([7, 8, 9].map(|user| writes.of(&source(1), user)), [None, Some(at(200)), Some(at(300))]);
    }

    #[test]
    fn a_like_is_awaited_for_itself_also_after_a_later_write() {
        let writes = OwnWrites::new(source(1));
        writes.wrote(&source(1), 7, Awaited { lsn: Lsn(100), likes: Lsn(100) }, Lsn(0));
        writes.wrote(&source(1), 7, at(200), Lsn(0));
        assert_eq!(writes.of(&source(1), 7), Some(Awaited { lsn: Lsn(200), likes: Lsn(100) }));
    }

    #[test]
    fn positions_are_of_one_source() {
        let writes = OwnWrites::new(source(1));
        writes.wrote(&source(1), 7, at(1 << 40), Lsn(0));
        assert_eq!(writes.of(&source(2), 7), None);
        writes.wrote(&source(2), 8, at(10), Lsn(0));
        assert_eq!([7, 8].map(|user| writes.of(&source(2), user)), [None, Some(at(10))]);
        assert_eq!(writes.of(&source(1), 7), None);
    }

    #[test]
    fn those_who_have_not_written_for_longest_are_forgotten_first() {
        let writes = OwnWrites::new(source(1));
        for user in 0..=USERS_MAX as i64 {
            writes.wrote(&source(1), user, at(100), Lsn(0));
        }
        assert_eq!((writes.of(&source(1), 0), writes.of(&source(1), 1)), (None, Some(at(100))));
        assert_eq!(writes.writes.read().by_user.len(), USERS_MAX);
    }
}
