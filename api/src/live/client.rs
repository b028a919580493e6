//! What one client is sent.

use std::sync::Arc;
use std::time::Duration;

use feedmill_model::{Phase, Time, ms_of};
use feedmill_sinks::ReadError;
use feedmill_sinks::read::{
    AtOnce, Notification, Unread, Verdict, home_news, notifications_at_once, tweets, unread_at_once,
};
use serde::Deserialize;
use tokio::time::Instant;

use super::event::{Counts, CountsBody, Event, Gone, Open, Reset};
use super::mark::{KNOWN_MAX, Mark, Told, WINDOW_MS, entry_kind, notice_kind};
use super::registry::{Flags, Place};
use super::{End, WATCHED_MAX};
use crate::answer::{IdText, NotificationBody, TweetBody, UnreadBody, now_ms};
use crate::keys::Bearer;
use crate::problem::Problem;
use crate::state::Shared;

/// Entries that are sent in one go; of more the client is told to load the timeline.
const NEWS_MAX: usize = 100;
/// Notifications, likewise.
const NOTICES_MAX: usize = 60;
/// Notifications of the first page that is looked at, mostly the only one, and of those after it.
const NOTICES_FIRST: usize = 4;
const NOTICES_NEXT: usize = 20;
/// Pages of notifications that are looked at.
const NOTICE_PAGES_MAX: usize = 8;
/// No stream goes on for longer, whatever its token says.
const HOLDS_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How often the counts on screen and of what is not read are read again, at most.
const COUNTS_EVERY: Duration = Duration::from_secs(1);
/// After how long a read that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// After how long rows are looked for again that were late; after twice as long each time, up to [`RETRY`].
const LATE_FIRST: Duration = Duration::from_millis(10);
/// Heartbeats after which a client that says nothing is given up.
const SILENT_HEARTBEATS: u32 = 3;
/// Messages that a client may send at once, and how often it may send another.
const MESSAGES_MAX: u32 = 10;
const MESSAGE_EVERY: Duration = Duration::from_millis(500);

/// Where a client goes on.
pub(crate) enum Resume {
    /// With what comes from now on.
    Anew,
    /// After an event.
    After(Mark),
    /// After an event that nobody knows: it is told to load everything.
    Unknown,
}

/// A read failed, and is tried again.
struct Failed;

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Self {
        tracing::debug!(%error, "a stream cannot be read now");
        Failed
    }
}

impl From<Problem> for Failed {
    fn from(_: Problem) -> Self {
        Failed
    }
}

/// A tweet on screen.
struct Watched {
    id: i64,
    /// Who wrote it, once it was seen.
    author: Option<i64>,
    /// Likes, retweets and replies as they were told.
    counts: Option<[i64; 3]>,
}

/// Messages that a client may yet send.
struct Allowance {
    left: u32,
    since: Instant,
}

/// One client, whatever its transport.
pub(crate) struct Client {
    context: Shared,
    place: Place,
    viewer: i64,
    bearer: Bearer,
    /// Until it has begun.
    resume: Option<Resume>,
    mark: Mark,
    unread: Option<Unread>,
    watched: Vec<Watched>,
    /// What has to be looked at yet.
    due: Flags,
    heartbeat: Duration,
    heartbeat_at: Instant,
    silent_at: Instant,
    ends_at: Instant,
    /// Before this nothing is read, because a read failed, or rows were late.
    retry_at: Instant,
    /// For how long late rows are let come, the next time.
    late: Duration,
    /// Before this no counts are.
    counts_at: Instant,
    allowance: Allowance,
}

impl Client {
    /// The stream of the holder of a token, which takes a place, with the tweets that are on screen.
    pub fn new(context: Shared, mut place: Place, bearer: Bearer, resume: Resume, on_screen: Vec<i64>) -> Self {
        let now = Instant::now();
        let heartbeat = context.settings.stream_heartbeat;
        let holds = Duration::from_secs(bearer.expires).saturating_sub(Duration::from_millis(now_ms())).min(HOLDS_MAX);
        place.watch(on_screen.clone());
        Client {
            context,
            place,
            viewer: bearer.user,
            bearer,
            resume: Some(resume),
            mark: Mark::default(),
            unread: None,
            watched: on_screen.into_iter().map(Watched::new).collect(),
            due: Flags { unread: true, all_watched: true, ..Flags::default() },
            heartbeat,
            heartbeat_at: now + heartbeat,
            silent_at: now + heartbeat * SILENT_HEARTBEATS,
            ends_at: now + holds,
            retry_at: now,
            late: LATE_FIRST,
            counts_at: now,
            allowance: Allowance { left: MESSAGES_MAX, since: now },
        }
    }

    /// How long it may take none of what is sent.
    pub(super) fn stall(&self) -> Duration {
        self.context.settings.stream_stall
    }

    /// Waits until there may be something to do. Nothing is lost if it is given up.
    pub(super) async fn turn(&self) {
        let mut next = self.heartbeat_at.min(self.ends_at);
        if self.is_due() {
            next = next.min(self.retry_at);
        }
        if self.are_counts_due() {
            next = next.min(self.counts_at.max(self.retry_at));
        }
        tokio::select! {
            () = self.place.woken() => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }

    fn is_due(&self) -> bool {
        self.resume.is_some() || self.due.home || self.due.notices || self.due.account
    }

    fn are_counts_due(&self) -> bool {
        self.due.unread || self.due.all_watched || !self.due.watched.is_empty()
    }

    /// Why it ends now, if it does.
    pub(super) fn end(&mut self) -> Option<End> {
        self.due.add(self.place.flags());
        let expired = || (Instant::now() >= self.ends_at).then_some(End::Expired);
        let signed_out = || self.context.revoked.has(&self.bearer).then_some(End::SignedOut);
        self.due.end.or_else(expired).or_else(signed_out)
    }

    /// Whether a sign of life is due.
    pub(super) fn is_heartbeat_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.heartbeat_at;
        if is_due {
            self.heartbeat_at = now + self.heartbeat;
        }
        is_due
    }

    /// The client has said something.
    pub(super) fn heard(&mut self) {
        self.silent_at = Instant::now() + self.heartbeat * SILENT_HEARTBEATS;
    }

    /// Whether the client has said nothing for too long.
    pub(super) fn is_silent(&self) -> bool {
        Instant::now() >= self.silent_at
    }

    /// Counts a message, whatever it says.
    pub(super) fn count_message(&mut self) -> Result<(), End> {
        self.allowance.take()
    }

    /// A message of the client: the tweets that are on its screen.
    pub(super) fn message(&mut self, text: &str) -> Result<(), End> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Message {
            watch: Vec<String>,
        }
        let Message { watch } = serde_json::from_str(text).map_err(|_| End::BadMessage)?;
        let on_screen = tweet_ids(watch.iter().map(String::as_str)).ok_or(End::BadMessage)?;
        self.watched.retain(|watched| on_screen.contains(&watched.id));
        self.due.watched.retain(|tweet| on_screen.contains(tweet));
        for id in &on_screen {
            if !self.watched.iter().any(|watched| watched.id == *id) {
                self.watched.push(Watched::new(*id));
                self.due.add(Flags { watched: vec![*id], ..Flags::default() });
            }
        }
        self.place.watch(on_screen);
        Ok(())
    }

    /// What is new, oldest first: read now, to be sent at once.
    pub(super) async fn news(&mut self) -> Vec<Event> {
        let now = Instant::now();
        let counts = self.are_counts_due() && now >= self.counts_at;
        let mut events = Vec::new();
        if now >= self.retry_at && (self.is_due() || counts) {
            // In a box, so that a client that waits takes no room for its reads.
            match Box::pin(self.look(counts, &mut events)).await {
                Err(Failed) => self.retry_at = Instant::now() + RETRY,
                Ok(()) if self.is_due() => {
                    self.retry_at = Instant::now() + self.late;
                    self.late = (self.late * 2).min(RETRY);
                }
                Ok(()) => self.late = LATE_FIRST,
            }
        }
        events
    }

    /// Looks at what is due. Nothing waits in here, because others wait for the turn; what is late stays due.
    async fn look(&mut self, counts: bool, events: &mut Vec<Event>) -> Result<(), Failed> {
        let context = Arc::clone(&self.context);
        let _turn = context.live.turn().await;
        // The session may have ended meanwhile.
        if self.end().is_some() {
            return Ok(());
        }
        if self.due.account {
            let facts = context.views.relationships(None, &[self.viewer]).await?;
            if facts.iter().any(|facts| facts.deleted) {
                self.due.end = Some(End::AccountDeleted);
                return Ok(());
            }
            self.due.account = false;
        }
        if self.resume.is_some() {
            self.begin(events).await?;
        }
        if self.due.home {
            self.due.home = self.look_at_home(events).await?;
        }
        if self.due.notices {
            self.due.notices = self.look_at_notices(events).await?;
        }
        if counts {
            self.counts_at = Instant::now() + COUNTS_EVERY;
            if self.due.unread {
                self.due.unread = self.count_unread(events).await?;
            }
            self.count_watched(events).await?;
        }
        Ok(())
    }

    async fn begin(&mut self, events: &mut Vec<Event>) -> Result<(), Failed> {
        let unknown = match &self.resume {
            Some(Resume::After(mark)) => {
                self.mark = mark.clone();
                (self.due.home, self.due.notices) = (true, true);
                false
            }
            resume => {
                let unknown = matches!(resume, Some(Resume::Unknown));
                let (entries, notices) = (self.entries_now().await?, self.notices_now().await?);
                (self.due.home, self.due.notices) = (self.due.home | entries.late, self.due.notices | notices.late);
                self.mark = Mark { entries: entries.value, notices: notices.value };
                unknown
            }
        };
        self.resume = None;
        let heartbeat_ms = u64::try_from(self.heartbeat.as_millis()).unwrap_or(u64::MAX);
        events.push(Event::new("open", self.mark.text(), &Open { heartbeat_ms }));
        if unknown {
            ["timeline", "notifications"].into_iter().for_each(|of| events.push(self.reset(of)));
        }
        Ok(())
    }

    fn reset(&self, of: &'static str) -> Event {
        Event::new("reset", self.mark.text(), &Reset { of })
    }

    /// Up to when what was made has been applied, but for the window, by views of the closed time `time`. That is when it came
    /// into the log, which may be long after it was made: while capture is behind, the newest entry says how far it is.
    fn applied(&self, time: Time) -> Time {
        let newest = self.context.views.changes().newest_entry(time).map_or(0, ms_of);
        time.min(Time::try_from(newest).unwrap_or(0))
    }

    /// All entries that are in the timeline now are known, but for late ones.
    async fn entries_now(&self) -> Result<AtOnce<Told>, Failed> {
        let views = self.context.views.as_ref();
        let mut told = Told::before(self.applied(views.time(Phase::Home)));
        let news = home_news(views, &self.context.parameters, self.viewer, told.floor(), &[], KNOWN_MAX).await?;
        let mut entries = news.looked_at;
        entries.sort_unstable();
        if let Some(oldest) = entries.first().filter(|_| news.more) {
            told.rise(oldest.id);
        }
        entries.iter().for_each(|entry| told.add(entry.id, entry_kind(*entry)));
        Ok(AtOnce { value: told, late: news.late })
    }

    /// All notifications that are there now are known, but for late ones.
    async fn notices_now(&self) -> Result<AtOnce<Told>, Failed> {
        let views = self.context.views.as_ref();
        let mut told = Told::before(self.applied(views.time(Phase::Reactions)));
        let news = notifications_at_once(views, self.viewer, None, NOTICES_NEXT).await?;
        if let Some(next) = news.value.next {
            told.rise(next.order);
        }
        news.value.items.iter().rev().for_each(|notice| add_notice(&mut told, notice));
        Ok(AtOnce { value: told, late: news.late })
    }

    /// Tells what is new in the timeline; gives whether some of it is late.
    async fn look_at_home(&mut self, events: &mut Vec<Event>) -> Result<bool, Failed> {
        let context = Arc::clone(&self.context);
        let (views, told) = (context.views.as_ref(), &self.mark.entries);
        let known = told.entries();
        let mut news = home_news(views, &context.parameters, self.viewer, told.floor(), &known, NEWS_MAX).await?;
        if news.more {
            let now = self.entries_now().await?;
            self.mark.entries = now.value;
            events.push(self.reset("timeline"));
            return Ok(now.late);
        }
        let flags = context.flags(Some(self.viewer), &news.items).await?;
        let now_ms = i64::try_from(now_ms()).unwrap_or(i64::MAX);
        for item in news.items.iter().rev() {
            self.mark.entries.add(item.entry.id, entry_kind(item.entry));
            events.push(Event::new("entry", self.mark.text(), &TweetBody::from(item).seen(&flags)));
            let age_ms = now_ms.saturating_sub(ms_of(item.entry.id)).max(0);
            // What is older was missed by a client that was away.
            if age_ms < WINDOW_MS as i64 {
                metrics::histogram!("feedmill_stream_entry_age_seconds").record(age_ms as f64 / 1e3);
            }
        }
        news.looked_at.sort_unstable();
        news.looked_at.iter().for_each(|entry| self.mark.entries.add(entry.id, entry_kind(*entry)));
        self.mark.entries.looked_at(self.applied(news.time));
        Ok(news.late)
    }

    /// Tells what happened; gives whether some of it is late. A notification of several things is new when one of them is.
    async fn look_at_notices(&mut self, events: &mut Vec<Event>) -> Result<bool, Failed> {
        let context = Arc::clone(&self.context);
        let (views, told) = (context.views.as_ref(), &self.mark.notices);
        let (mut new, mut cursor, mut limit) = (Vec::<Notification>::new(), None, NOTICES_FIRST);
        let time = views.time(Phase::Reactions).min(views.time(Phase::Rows)).min(views.time(Phase::Facts));
        let knows =
            |notice: &Notification| notice.orders.iter().all(|order| told.knows(*order, notice_kind(notice.kind)));
        let (mut missed, mut late) = (true, false);
        for _ in 0..NOTICE_PAGES_MAX {
            let news = notifications_at_once(views, self.viewer, cursor, limit).await?;
            late |= news.late;
            new.extend(news.value.items.into_iter().filter(|notice| !knows(notice)));
            cursor = news.value.next.filter(|next| next.order > told.floor());
            if cursor.is_none() || new.len() > NOTICES_MAX {
                missed = cursor.is_some() || new.len() > NOTICES_MAX;
                break;
            }
            limit = NOTICES_NEXT;
        }
        if missed {
            let now = self.notices_now().await?;
            self.mark.notices = now.value;
            events.push(self.reset("notifications"));
            return Ok(now.late);
        }
        let flags = context.flags(Some(self.viewer), &new).await?;
        for notice in new.iter().rev() {
            add_notice(&mut self.mark.notices, notice);
            events.push(Event::new("notification", self.mark.text(), &NotificationBody::new(notice, &flags)));
        }
        self.mark.notices.looked_at(self.applied(time));
        Ok(late)
    }

    /// Tells how much is not read; gives whether some of it is late.
    async fn count_unread(&mut self, events: &mut Vec<Event>) -> Result<bool, Failed> {
        let AtOnce { value: count, late } = unread_at_once(self.context.views.as_ref(), self.viewer).await?;
        if self.unread != Some(count) {
            self.unread = Some(count);
            events.push(Event::new("unread", None, &UnreadBody::from(count)));
        }
        Ok(late)
    }

    /// Tells the counts of tweets on screen, and which of them are gone. One that is not there yet is told of when it comes.
    async fn count_watched(&mut self, events: &mut Vec<Event>) -> Result<(), Failed> {
        let is_due = |watched: &&Watched| self.due.all_watched || self.due.watched.contains(&watched.id);
        let ids: Vec<i64> = self.watched.iter().filter(is_due).map(|watched| watched.id).collect();
        if ids.is_empty() {
            (self.due.all_watched, self.due.watched) = (false, Vec::new());
            return Ok(());
        }
        let found = tweets(self.context.views.as_ref(), Some(self.viewer), &ids).await?;
        let authors: Vec<i64> = self.watched.iter().filter_map(|watched| watched.author).collect();
        let (mut changed, mut gone, mut again) = (Vec::new(), Vec::new(), Vec::new());
        for (id, verdict) in ids.into_iter().zip(found) {
            let Some(watched) = self.watched.iter_mut().find(|watched| watched.id == id) else { continue };
            let tweet = match verdict {
                Verdict::Shown(tweet) => tweet,
                // Nobody has seen it yet.
                Verdict::Missing if watched.counts.is_none() => continue,
                Verdict::Late => {
                    again.push(id);
                    continue;
                }
                Verdict::Missing | Verdict::Hidden => {
                    gone.push(id);
                    continue;
                }
            };
            let (likes, retweets, replies) = (tweet.tweet.likes, tweet.tweet.retweets, tweet.tweet.replies);
            let author = tweet.author.user.id;
            // What hides an author is told from now on, but not what did since the tweet was judged.
            if !authors.contains(&author) {
                again.push(id);
            }
            watched.author = Some(author);
            if watched.counts.replace([likes, retweets, replies]) != Some([likes, retweets, replies]) {
                changed.push(CountsBody { id: IdText(id), likes, retweets, replies });
            }
        }
        if !changed.is_empty() {
            events.push(Event::new("counts", None, &Counts { tweets: changed }));
        }
        if !gone.is_empty() {
            self.watched.retain(|watched| !gone.contains(&watched.id));
            self.place.watch(self.watched.iter().map(|watched| watched.id).collect());
            events.push(Event::new("gone", None, &Gone { tweets: gone.into_iter().map(IdText).collect() }));
        }
        self.place.written_by(self.watched.iter().filter_map(|watched| watched.author).collect());
        (self.due.all_watched, self.due.watched) = (false, again);
        Ok(())
    }
}

/// All that is in a notification was told.
fn add_notice(told: &mut Told, notice: &Notification) {
    notice.orders.iter().rev().for_each(|order| told.add(*order, notice_kind(notice.kind)));
}

impl Watched {
    const fn new(id: i64) -> Self {
        Watched { id, author: None, counts: None }
    }
}

impl Allowance {
    fn take(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let earned = now.duration_since(self.since).as_millis() / MESSAGE_EVERY.as_millis();
        if earned > 0 {
            self.since = now;
            self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(MESSAGES_MAX);
        }
        self.left = self.left.checked_sub(1).ok_or(End::TooManyMessages)?;
        Ok(())
    }
}

/// Ids of tweets on screen, each once; `None` if one is no id, or there are too many.
pub(crate) fn tweet_ids<'a>(texts: impl Iterator<Item = &'a str>) -> Option<Vec<i64>> {
    let mut ids = Vec::new();
    for text in texts {
        let id: i64 = text.parse().ok()?;
        // One text an id: what the API itself writes.
        if id.to_string() != text || ids.len() == WATCHED_MAX {
            return None;
        }
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Some(ids)
}
