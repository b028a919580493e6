//! How much one user, and one address, may ask of this instance, and how much all may ask at once.
//!
//! ```text
//!   request ─► class by route ─┬─► signed in: limit of the user ──────┬─► 429   ─► place of the class ─► 503
//!                              └─► else: limit of the client's address ┘                  └─► handler
//!   login, register: limit of the address; login: of the name from there, and of the name, too (by the handler)
//! ```
//!
//! A limit is a leaky bucket (GCRA): it holds a minute's requests and fills evenly, so the number a minute is exact over
//! time, and a burst of as many is let through at once. Whoever is signed in counts as a user, wherever from, since many
//! people may share an address; who is not counts as an address (of IPv6 as its /64, which is what one client has).
//!
//! Whoever knows a name can use up what may be tried under it. So that this keeps nobody out, most of it is counted for each
//! address apart; what is counted wherever from is far more, and bounds those who have many addresses.
//!
//! State lives in this process: N instances together allow N times as much. It is bounded: see [`Buckets`].

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

use crate::address::client_network;
use crate::gates::Gate;
use crate::problem::{Kind, Problem};
use crate::state::{Context, Shared};
use crate::viewer::Authorization;

/// The fields of <https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/>.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Over what time a limit is told, in seconds.
const WINDOW_S: u32 = 60;
/// Users or addresses of which one limit keeps state, at about 40 bytes each.
const BUCKETS_MAX: usize = 100_000;
/// Parts of a limit's state that are locked apart.
const PARTS: usize = 16;

/// Requests a minute; 0 for any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Sign-ins tried under one name from one address; of a user who is signed in, passwords that confirm something.
    pub login_user: u32,
    /// Sign-ins tried under one name, wherever from.
    pub login_name: u32,
    /// Sign-ins tried from one address.
    pub login_address: u32,
    /// Registrations from one address.
    pub register_address: u32,
    /// Writes of one user.
    pub write_user: u32,
    /// Writes that nobody has signed, and renewals of sessions, from one address.
    pub write_address: u32,
    /// Reads of one user.
    pub read_user: u32,
    /// Reads of nobody in particular, from one address.
    pub read_address: u32,
    /// Searches of one user.
    pub search_user: u32,
    /// Searches of nobody in particular, from one address.
    pub search_address: u32,
    /// Exports of one user. Without a token they are reads.
    pub export_user: u32,
}

impl RateLimits {
    /// None at all.
    pub const NONE: RateLimits = RateLimits {
        login_user: 0,
        login_name: 0,
        login_address: 0,
        register_address: 0,
        write_user: 0,
        write_address: 0,
        read_user: 0,
        read_address: 0,
        search_user: 0,
        search_address: 0,
        export_user: 0,
    };
}

impl Default for RateLimits {
    fn default() -> Self {
        RateLimits {
            login_user: 10,
            login_name: 100,
            login_address: 60,
            register_address: 30,
            write_user: 300,
            write_address: 300,
            read_user: 1_800,
            read_address: 1_800,
            search_user: 300,
            search_address: 300,
            export_user: 5,
        }
    }
}

/// What is limited apart from the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Login,
    Register,
    Write,
    Read,
    Search,
    /// A read of everything. How many there may be at a time is the matter of `routes::export`.
    Export,
    /// A stream of live updates: a read that goes on. How many there may be is the matter of `live`.
    Stream,
}

impl Class {
    fn of(method: &Method, route: &str) -> Class {
        match route.strip_prefix("/api").unwrap_or(route) {
            "/auth/login" => Class::Login,
            "/auth/register" => Class::Register,
            "/stream" => Class::Stream,
            "/users/me/export" => Class::Export,
            _ if !matches!(*method, Method::GET | Method::HEAD) => Class::Write,
            route if route == "/search" || route.starts_with("/timeline/search/") => Class::Search,
            _ => Class::Read,
        }
    }
}

/// Whom a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    User(i64),
    Address(IpAddr),
    /// The hash of a name, or of a name and an address. Two in one bucket are unlikely, and no harm.
    Name(u64),
}

/// The state of one limit, bounded. Where there are more keys than fit, those go that have nearly all of their requests
/// left: forgetting them gives each at most one request more. If none has, newcomers share one bucket.
struct Buckets {
    parts: [Mutex<Part>; PARTS],
    part_max: usize,
    hash: RandomState,
}

#[derive(Default)]
struct Part {
    buckets: HashMap<Who, Nanos>,
    others: Option<Nanos>,
}

impl Buckets {
    fn new(max: usize) -> Self {
        let parts = std::array::from_fn(|_| Mutex::default());
        Buckets { parts, part_max: max / PARTS, hash: RandomState::new() }
    }
}

impl StateStore for Buckets {
    type Key = Who;

    fn measure_and_replace<T, F, E>(&self, who: &Who, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let at = self.hash.hash_one(who) as usize % PARTS;
        // The index is within the array by its modulus.
        let Some(part) = self.parts.get(at) else { return decide(None).map(|(told, _)| told) };
        let part = &mut *part.lock();
        if let Some(state) = part.buckets.get_mut(who) {
            let (told, next) = decide(Some(*state))?;
            *state = next;
            return Ok(told);
        }
        let (told, first) = decide(None)?;
        if part.buckets.len() >= self.part_max {
            part.buckets.retain(|_, state| *state > first);
        }
        if part.buckets.len() < self.part_max {
            part.buckets.insert(*who, first);
            return Ok(told);
        }
        let (told, next) = decide(part.others)?;
        part.others = Some(next);
        Ok(told)
    }
}

/// One limit.
struct Policy {
    name: &'static str,
    per_minute: NonZeroU32,
    limiter: RateLimiter<Who, Buckets, DefaultClock, StateInformationMiddleware>,
}

/// How somebody stands under a limit.
#[derive(Clone, Copy)]
struct Standing {
    name: &'static str,
    per_minute: NonZeroU32,
    remaining: u32,
    /// Until all of the requests are there again; of one that was refused, until the next is taken.
    seconds: u64,
}

impl Policy {
    /// `None` for no limit.
    fn new(name: &'static str, per_minute: u32) -> Option<Self> {
        let per_minute = NonZeroU32::new(per_minute)?;
        // So that it is there from the beginning, at 0.
        metrics::counter!("feedmill_http_rate_limited_total", "limit" => name).increment(0);
        let limiter =
            RateLimiter::new(Quota::per_minute(per_minute), Buckets::new(BUCKETS_MAX), DefaultClock::default());
        Some(Policy { name, per_minute, limiter })
    }

    /// Takes one request of `who`; `Err` if there is none left.
    fn take(&self, who: Who) -> Result<Standing, Standing> {
        let standing =
            |remaining, seconds| Standing { name: self.name, per_minute: self.per_minute, remaining, seconds };
        match self.limiter.check_key(&who) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let used = self.per_minute.get().saturating_sub(remaining);
                Ok(standing(remaining, whole_seconds(state.quota().replenish_interval() * used)))
            }
            Err(until) => {
                metrics::counter!("feedmill_http_rate_limited_total", "limit" => self.name).increment(1);
                let wait = until.wait_time_from(self.limiter.clock().now());
                Err(standing(0, whole_seconds(wait).max(1)))
            }
        }
    }
}

/// Rounded up: nobody is told to come too early.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

impl Standing {
    fn problem(self) -> Problem {
        let Standing { name, per_minute, seconds, .. } = self;
        Kind::RateLimited
            .because(format!("The limit {name} is {per_minute} requests a minute. Try again in {seconds} s."))
            .retry_after(seconds)
    }

    fn tell(self, headers: &mut HeaderMap) {
        let Standing { name, per_minute, remaining, seconds } = self;
        let policy = HeaderValue::try_from(format!("\"{name}\";q={per_minute};w={WINDOW_S}"));
        let limit = HeaderValue::try_from(format!("\"{name}\";r={remaining};t={seconds}"));
        if let (Ok(policy), Ok(limit)) = (policy, limit) {
            headers.insert(RATE_LIMIT_POLICY, policy);
            headers.insert(RATE_LIMIT, limit);
        }
    }
}

/// The limits of a class: for who is signed in, and for who is not.
struct Pair {
    user: Option<Policy>,
    address: Option<Policy>,
}

/// All limits.
pub(crate) struct Limits {
    login: Pair,
    login_name: Option<Policy>,
    register: Pair,
    write: Pair,
    read: Pair,
    search: Pair,
    export: Option<Policy>,
    names: RandomState,
}

impl Limits {
    pub fn new(limits: RateLimits) -> Self {
        let pair = |user, user_limit, address, address_limit| Pair {
            user: Policy::new(user, user_limit),
            address: Policy::new(address, address_limit),
        };
        Limits {
            login: pair("login-user", limits.login_user, "login-address", limits.login_address),
            login_name: Policy::new("login-name", limits.login_name),
            register: pair("register-user", 0, "register-address", limits.register_address),
            write: pair("write-user", limits.write_user, "write-address", limits.write_address),
            read: pair("read-user", limits.read_user, "read-address", limits.read_address),
            search: pair("search-user", limits.search_user, "search-address", limits.search_address),
            export: Policy::new("export-user", limits.export_user),
            names: RandomState::new(),
        }
    }

    /// One more sign-in is tried, under a name or address of mail as it is looked up, whether the account is there or not.
    /// What is refused there does not count wherever from: one address uses up no more of that than it has itself.
    pub fn sign_in(&self, name: &str, from: IpAddr) -> Result<(), Problem> {
        take(&self.login.user, Who::Name(self.names.hash_one((name, from))))?;
        take(&self.login_name, Who::Name(self.names.hash_one(name)))
    }

    /// One more password is tried of a user who is signed in. Nobody else can use that up.
    pub fn confirmation(&self, user: i64) -> Result<(), Problem> {
        take(&self.login.user, Who::User(user))
    }

    fn of(&self, class: Class) -> (&Option<Policy>, &Option<Policy>) {
        let Pair { user, address } = match class {
            Class::Login => &self.login,
            Class::Register => &self.register,
            Class::Write => &self.write,
            Class::Read | Class::Stream => &self.read,
            Class::Search => &self.search,
            Class::Export => return (&self.export, &self.read.address),
        };
        (user, address)
    }

    /// Takes one request; gives how whoever sent it stands, if a limit applies.
    fn take(&self, class: Class, request: &mut Request, context: &Context) -> Result<Option<Standing>, Standing> {
        let (user, address) = self.of(class);
        let authorization = match class {
            // Who signs in is nobody yet.
            Class::Login | Class::Register => Authorization::Absent,
            _ => {
                let authorization = Authorization::of(request.headers(), &context.keys);
                request.extensions_mut().insert(authorization);
                authorization
            }
        };
        let (policy, who) = match authorization {
            Authorization::Holds(bearer) => (user, Who::User(bearer.user)),
            _ => (address, Who::Address(client_network(request.extensions()))),
        };
        policy.as_ref().map(|policy| policy.take(who)).transpose()
    }
}

/// Takes one of a limit that a handler looks after.
fn take(policy: &Option<Policy>, who: Who) -> Result<(), Problem> {
    let Some(policy) = policy else { return Ok(()) };
    policy.take(who).map(drop).map_err(Standing::problem)
}

/// Lets a request through if its sender has one left and its class has a place.
pub(crate) async fn admit(State(context): State<Shared>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let class = Class::of(request.method(), route);
    let standing = match context.limits.take(class, &mut request, &context) {
        Ok(standing) => standing,
        Err(refused) => {
            let mut response = refused.problem().into_response();
            refused.tell(response.headers_mut());
            return response;
        }
    };
    let mut response = match context.gates.of(class).map(Gate::enter).transpose() {
        Ok(_place) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    if let Some(standing) = standing {
        standing.tell(response.headers_mut());
    }
    response
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_minute_holds_as_many_as_the_limit_says_for_each_alone() {
        let policy = Policy::new("read-user", 3).unwrap();
        let remaining: Vec<u32> = (0..3).map(|_| policy.take(Who::User(7)).ok().unwrap().remaining).collect();
        assert_eq!(remaining, [2, 1, 0]);
        let refused = policy.take(Who::User(7)).err().unwrap();
        assert_eq!(refused.remaining, 0);
        assert!((1..=20).contains(&refused.seconds), "{}", refused.seconds);
        let mut headers = HeaderMap::new();
        policy.take(Who::User(8)).ok().unwrap().tell(&mut headers);
        assert_eq!(headers[RATE_LIMIT_POLICY], "\"read-user\";q=3;w=60");
        assert_eq!(headers[RATE_LIMIT], "\"read-user\";r=2;t=20");
        assert!(Policy::new("read-user", 0).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded_and_a_flood_of_addresses_frees_nobody_from_a_limit() {
        let buckets = Buckets::new(16 * PARTS);
        let now = Cell::new(0);
        // Three at once, and one each 100 after that.
        let decide = |state: Option<Nanos>| {
            let state = state.map_or(now.get(), Nanos::as_u64);
            if state.saturating_sub(200) > now.get() {
                return Err(());
            }
            Ok(((), Nanos::new(state.max(now.get()) + 100)))
        };
        let greedy: Vec<Who> = (0..64).map(Who::User).collect();
        for who in &greedy {
            while buckets.measure_and_replace(who, decide).is_ok() {}
        }
        for n in 0..100_000_u64 {
            now.set(n / 1_000);
            let _ = buckets.measure_and_replace(&Who::Name(n), decide);
        }
        let kept: usize = buckets.parts.iter().map(|part| part.lock().buckets.len()).sum();
        assert!(kept <= 16 * PARTS, "{kept}");
        now.set(50);
        for who in &greedy {
            assert!(buckets.measure_and_replace(who, decide).is_err(), "{who:?} was forgotten");
        }
    }

    #[test]
    fn a_route_is_of_one_class() {
        for (method, route, class) in [
            (Method::POST, "/api/auth/login", Class::Login),
            (Method::POST, "/api/auth/register", Class::Register),
            (Method::GET, "/api/search", Class::Search),
            (Method::GET, "/api/timeline/search/hashtag/{tag}", Class::Search),
            (Method::GET, "/api/timeline", Class::Read),
            (Method::HEAD, "/api/timeline", Class::Read),
            (Method::GET, "/api/stream", Class::Stream),
            (Method::PATCH, "/api/users/me", Class::Write),
            (Method::GET, "/api/users/me/export", Class::Export),
        ] {
            assert_eq!(Class::of(&method, route), class, "{method} {route}");
        }
    }
}
