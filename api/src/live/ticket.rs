//! Tickets for streams of clients that can send no headers: `EventSource` and `WebSocket` of browsers.
//!
//! ```text
//!   base64url( version 1 | user 8 | session 8 | token signed 8 | token ends 8 | ticket ends 8 ) . base64url( HMAC-SHA256( purpose | the same ) )
//! ```
//!
//! A ticket stands in an address, which proxies and histories keep, so it opens streams only, and for [`TICKET_S`] seconds
//! only. The stream ends when the token would have that the ticket was asked for with, or its session.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::keys::{Bearer, Keys};

/// How long a ticket holds, in seconds.
pub(crate) const TICKET_S: u64 = 30;

const VERSION: u8 = 1;
const PURPOSE: &[u8] = b"feedmill stream ticket\0";
/// What stands for no session: no session has it.
const NO_SESSION: i64 = 0;
/// 41 bytes in base64, a point, 32 bytes in base64.
const TICKET_BYTES: usize = 55 + 1 + 43;

/// Makes and reads tickets.
pub(crate) struct Tickets {
    keys: Keys,
}

impl Tickets {
    /// Tickets that these keys sign.
    pub fn new(keys: Keys) -> Self {
        Tickets { keys }
    }

    /// A ticket from now on, in seconds since 1970; `None` if the library refuses to sign.
    pub fn ticket(&self, bearer: Bearer, now_s: u64) -> Option<String> {
        let mut content = vec![VERSION];
        content.extend(bearer.user.to_be_bytes());
        content.extend(bearer.session.unwrap_or(NO_SESSION).to_be_bytes());
        for at in [bearer.signed_at, bearer.expires, now_s.saturating_add(TICKET_S)] {
            content.extend(at.to_be_bytes());
        }
        let code = self.keys.code(&message(&content))?;
        Some(format!("{}.{code}", URL_SAFE_NO_PAD.encode(content)))
    }

    /// Whom a ticket identifies that holds now.
    pub fn bearer(&self, ticket: &str, now_s: u64) -> Option<Bearer> {
        if ticket.len() != TICKET_BYTES {
            return None;
        }
        let (content, code) = ticket.split_once('.')?;
        let content = URL_SAFE_NO_PAD.decode(content).ok()?;
        if !self.keys.confirms(&message(&content), code) {
            return None;
        }
        let (user, rest) = content.strip_prefix(&[VERSION])?.split_first_chunk()?;
        let (session, rest) = rest.split_first_chunk()?;
        let (signed_at, rest) = rest.split_first_chunk()?;
        let (expires, ends) = rest.split_first_chunk()?;
        let session = i64::from_be_bytes(*session);
        let bearer = Bearer {
            user: i64::from_be_bytes(*user),
            session: (session != NO_SESSION).then_some(session),
            signed_at: u64::from_be_bytes(*signed_at),
            expires: u64::from_be_bytes(*expires),
        };
        let holds = now_s < u64::from_be_bytes(ends.try_into().ok()?);
        (holds && now_s < bearer.expires).then_some(bearer)
    }
}

fn message(content: &[u8]) -> Vec<u8> {
    [PURPOSE, content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_holds_for_a_short_while_and_for_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::load_or_create(&folder.path().join("keys")).unwrap();
        let tickets = Tickets::new(keys.clone());
        let bearer = Bearer { user: -7, session: Some(5), signed_at: 900, expires: 2_000 };
        let ticket = tickets.ticket(bearer, 1_000).unwrap();
        assert_eq!(ticket.len(), TICKET_BYTES);
        assert_eq!(tickets.bearer(&ticket, 1_000 + TICKET_S - 1), Some(bearer));
        assert_eq!(tickets.bearer(&ticket, 1_000 + TICKET_S), None);
        let late = tickets.ticket(bearer, 1_999).unwrap();
        assert_eq!(tickets.bearer(&late, 2_000), None, "the token has expired");
        assert!(keys.bearer_of(&ticket).is_err(), "it is no token");
        for at in 0..ticket.len() {
            let mut altered = ticket.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(tickets.bearer(std::str::from_utf8(&altered).unwrap(), 1_000), None, "at {at}");
        }
        for text in ["", ".", "é", &ticket[1..], &format!("{ticket}=")] {
            assert_eq!(tickets.bearer(text, 1_000), None, "{text}");
        }
    }
}
