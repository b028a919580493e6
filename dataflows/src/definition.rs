//! The SQL that defines each view.
//!
//! A query has two text columns, `key` and `value`, never NULL and in no order. `:time_ms` and the settings stand for
//! numbers, and `@name` for the query of a job that other views build upon.

use std::sync::LazyLock;

use feedmill_model::text::{self, Patterns};
use feedmill_model::{Parameters, Time, View};

/// Queries that others contain, with the name that stands for them.
const PARTS: [(&str, &str); 5] = [
    ("@audience", include_str!("jobs/audience.sql")),
    ("@active", include_str!("jobs/active.sql")),
    ("@hot", include_str!("jobs/hot.sql")),
    ("@tags", include_str!("jobs/hashtags/tags.sql")),
    ("@mentions", include_str!("jobs/notifications/mentions.sql")),
];

const fn template(view: View) -> &'static str {
    match view {
        View::FollowFacts => include_str!("jobs/facts/follow_facts.sql"),
        View::Blocks => include_str!("jobs/facts/blocks.sql"),
        View::Mutes => include_str!("jobs/facts/mutes.sql"),
        View::Protected => include_str!("jobs/facts/protected.sql"),
        View::DeletedUsers => include_str!("jobs/facts/deleted_users.sql"),
        View::DeletedTweets => include_str!("jobs/facts/deleted_tweets.sql"),
        View::Profile => include_str!("jobs/profile/profile.sql"),
        View::Username => include_str!("jobs/profile/username.sql"),
        View::Followers => include_str!("jobs/follows/followers.sql"),
        View::Following => include_str!("jobs/follows/following.sql"),
        View::Tweet => include_str!("jobs/tweets/tweet.sql"),
        View::Retweet => include_str!("jobs/retweets/retweet.sql"),
        View::UserTimeline => include_str!("jobs/user_timeline.sql"),
        View::Counts => include_str!("jobs/tweets/counts.sql"),
        View::LikeCounts => include_str!("jobs/likes/like_counts.sql"),
        View::Likers => include_str!("jobs/likes/likers.sql"),
        View::Liked => include_str!("jobs/likes/liked.sql"),
        View::Retweeters => include_str!("jobs/retweets/retweeters.sql"),
        View::Retweeted => include_str!("jobs/retweets/retweeted.sql"),
        View::FollowRequests => include_str!("jobs/follows/follow_requests.sql"),
        View::ReadMarks => include_str!("jobs/read_marks.sql"),
        View::Hashtag => include_str!("jobs/hashtags/hashtag.sql"),
        View::TrendingHashtags => include_str!("jobs/trends/trending_hashtags.sql"),
        View::TrendingTweets => include_str!("jobs/trends/trending_tweets.sql"),
        View::Conversation => include_str!("jobs/conversation.sql"),
        View::Notifications => include_str!("jobs/notifications/notifications.sql"),
        View::Active => "SELECT viewer::text AS key, '' AS value FROM (@active) AS active",
        View::VerifiedFollowing => include_str!("jobs/verified_following.sql"),
        View::Home => include_str!("jobs/home.sql"),
        View::Search => include_str!("jobs/search.sql"),
    }
}

/// `sql` without the lines that are comments: where it is put into another query, they would hide what follows.
fn statement(sql: &str) -> String {
    sql.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n")
}

/// The query that gives `view` as of `time`: two text columns `key` and `value`, in no order.
pub fn definition(view: View, time: Time, parameters: &Parameters) -> String {
    let query = PARTS
        .iter()
        .fold(statement(template(view)), |query, (name, part)| query.replace(name, &statement(part)))
        .replace(":time_ms", &format!("{time}::bigint"))
        .replace(":fanout_ms", &format!("{}::bigint", parameters.fanout_ms()))
        .replace(":active_days", &parameters.active_days.to_string())
        .replace(":hot_followers", &parameters.hot_followers.to_string());
    TEXT.iter().fold(query, |query, (name, literal)| query.replace(name, literal))
}

/// What stands for the rules by which tags and mentions are found, as literals. None of them has a quote in it.
static TEXT: LazyLock<[(&str, String); 6]> = LazyLock::new(|| {
    let Patterns { url, hashtag, mention, tag } = Patterns::new(text::in_postgres);
    let (fold_from, fold_to): (String, String) = text::simple_folds().unzip();
    let literals = [
        (":url_pattern", url),
        (":hashtag_pattern", hashtag),
        (":mention_pattern", mention),
        (":tag_pattern", tag),
        (":fold_from", fold_from),
        (":fold_to", fold_to),
    ];
    literals.map(|(name, text)| (name, format!("'{text}'")))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_replaced() {
        for view in View::ALL {
            let query = definition(view, 1_700_000_000_000, &Parameters::default());
            // Literals apart: patterns have signs of their own.
            let statement: String = query.split('\'').step_by(2).collect();
            assert!(!statement.contains('@') && !statement.contains("--"), "{statement}");
            assert!(!statement.replace("::", "").contains(':'), "{statement}");
            assert!(query.contains("AS key") && query.contains("AS value"), "{query}");
        }
    }
}
