//! Everything that facts, rows and reactions hold, in the words of the views' SQL.
//!
//! Key and value are text: fields stand apart by a space when all are numbers, by U+001F when there is text; NULL is
//! `\N`, a boolean `t` or `f`, a time its microseconds since 1970.

use feedmill_model::{Counter, EntryKind, Fact, Notice, View, ViewRow};

use super::{IndexReader, OrRead};
use crate::ReadError;

/// Stands between fields of which one is text.
const SEPARATOR: &str = "\u{1f}";
const NULL: &str = "\\N";

impl IndexReader {
    /// Calls `each` with everything that `counter` counts, and how often, in no particular order.
    pub(in crate::local) fn counts(&self, counter: Counter, each: &mut dyn FnMut(i64, i64)) -> Result<(), ReadError> {
        let what = "all counts";
        let mut pair = |row: ViewRow, count| match row {
            ViewRow::Count { counter: of_this, of } if of_this == counter => each(of, count),
            _ => {}
        };
        let view = counter.view();
        self.of_view(view, what)?.scan(&self.at, view, &mut pair).or_read(what)
    }

    /// Calls `each` with key and value of every row of `view`, in no particular order. Views that are not in this store,
    /// those of home timelines and search, have none.
    pub(in crate::local) fn scan(&self, view: View, each: &mut dyn FnMut(String, String)) -> Result<(), ReadError> {
        const ROWS: &str = "all rows of a view";
        const FACTS: &str = "all facts of a view";
        let rows = |view, each: &mut dyn FnMut(String, String)| {
            let mut pair = |row: ViewRow, count| {
                if let Some((key, value)) = row_text(&row, count) {
                    each(key, value);
                }
            };
            self.of_view(view, ROWS)?.scan(&self.at, view, &mut pair).or_read(ROWS)
        };
        let facts = |like: Fact, each: &mut dyn FnMut(String, String)| {
            let mut pair = |fact: Fact| {
                let (key, value) = fact_text(&fact);
                each(key, value);
            };
            self.facts(FACTS)?.scan(&self.at, &like, &mut pair).or_read(FACTS)
        };
        match view {
            View::FollowFacts => facts(Fact::Follow { follower: 0, following: 0, accepted: false }, each),
            View::Blocks => facts(Fact::Block { blocker: 0, blocked: 0 }, each),
            View::Mutes => facts(Fact::Mute { muter: 0, muted: 0 }, each),
            View::Protected => facts(Fact::Protected(0), each),
            View::DeletedUsers => facts(Fact::DeletedUser(0), each),
            View::DeletedTweets => facts(Fact::DeletedTweet(0), each),
            View::Active | View::VerifiedFollowing | View::Home | View::Search => Ok(()),
            _ => rows(view, each),
        }
    }
}

const fn boolean(value: bool) -> &'static str {
    if value { "t" } else { "f" }
}

fn fact_text(fact: &Fact) -> (String, String) {
    match *fact {
        Fact::Follow { follower, following, accepted } => {
            (format!("{follower} {following}"), boolean(accepted).to_owned())
        }
        Fact::Block { blocker: one, blocked: other } | Fact::Mute { muter: one, muted: other } => {
            (format!("{one} {other}"), String::new())
        }
        Fact::Protected(id) | Fact::DeletedUser(id) | Fact::DeletedTweet(id) => (id.to_string(), String::new()),
    }
}

/// `None` for a count of zero, which is as good as none.
fn row_text(row: &ViewRow, count: i64) -> Option<(String, String)> {
    Some(match row {
        ViewRow::Profile(user) => {
            let text = [
                &user.username,
                &user.display_name,
                user.bio.as_deref().unwrap_or(NULL),
                user.avatar_url.as_deref().unwrap_or(NULL),
                boolean(user.verified),
                boolean(user.protected),
                &user.created_at.to_string(),
                &user.updated_at.to_string(),
            ];
            (user.id.to_string(), text.join(SEPARATOR))
        }
        ViewRow::Username { name, user } => (name.clone(), user.to_string()),
        ViewRow::Follower { user, at, follower: other }
        | ViewRow::Following { user, at, following: other }
        | ViewRow::FollowRequest { user, at, follower: other }
        | ViewRow::Liker { tweet: user, at, user: other } => (format!("{user} {other}"), at.to_string()),
        ViewRow::Liked { user, tweet } => (format!("{user} {tweet}"), String::new()),
        ViewRow::Retweeter { tweet, id, user } => (format!("{tweet} {id}"), user.to_string()),
        ViewRow::Retweeted { user, tweet, id } => (format!("{user} {tweet}"), id.to_string()),
        ViewRow::ReadMark { user, read } => (user.to_string(), read.to_string()),
        ViewRow::Tagged { tag, tweet } => (format!("{tag}{SEPARATOR}{tweet}"), String::new()),
        ViewRow::TrendingTag { window, tag, authors, uses } => {
            (format!("{}{SEPARATOR}{tag}", window.name()), format!("{authors} {uses}"))
        }
        ViewRow::TrendingTweet { tweet, likes } => (tweet.to_string(), likes.to_string()),
        ViewRow::Reply { root, path, parent, user } => {
            let path: String = path.iter().map(|id| format!(" {id}")).collect();
            (format!("{root}{path}"), format!("{parent} {user}"))
        }
        ViewRow::Notification { user, notice: Notice { order, kind, actor, tweet } } => {
            (format!("{user} {order} {} {actor} {tweet}", kind.name()), String::new())
        }
        ViewRow::Tweet(tweet) => {
            let reply_to = tweet.reply_to_id.map_or_else(|| NULL.to_owned(), |id| id.to_string());
            let text = [
                &tweet.user_id.to_string(),
                &tweet.content,
                &reply_to,
                &tweet.conversation_id.to_string(),
                tweet.media.as_deref().unwrap_or(NULL),
                &tweet.created_at.to_string(),
                &tweet.updated_at.to_string(),
            ];
            (tweet.id.to_string(), text.join(SEPARATOR))
        }
        ViewRow::Retweet { id, user, tweet } => (id.to_string(), format!("{user} {tweet}")),
        ViewRow::TimelineEntry { user, reply, entry, tweet } => {
            (format!("{user} {} {}", entry.id, kind_text(entry.kind)), format!("{} {tweet}", boolean(*reply)))
        }
        ViewRow::Count { .. } if count == 0 => return None,
        ViewRow::Count { counter, of } => (format!("{} {of}", counter.name()), count.to_string()),
    })
}

/// How a key names the kind of an entry.
pub(in crate::local) const fn kind_text(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Tweet => "t",
        EntryKind::Retweet => "r",
    }
}
