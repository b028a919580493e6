//! The SQL that defines each view.
//!
//! A query has two text columns, `key` and `value`, never NULL and in no order. `:time_ms` and the settings stand for
//! numbers, and `@name` for the query of a job that other views build upon.

use feedmill_model::{Parameters, Time, View};

/// Queries that others contain, with the name that stands for them.
const PARTS: [(&str, &str); 3] = [
    ("@audience", include_str!("jobs/audience.sql")),
    ("@active", include_str!("jobs/active.sql")),
    ("@hot", include_str!("jobs/hot.sql")),
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
        View::Retweet => include_str!("jobs/retweets.sql"),
        View::UserTimeline => include_str!("jobs/user_timeline.sql"),
        View::Counts => include_str!("jobs/tweets/counts.sql"),
        View::Active => "SELECT viewer::text AS key, '' AS value FROM (@active) AS active",
        View::VerifiedFollowing => include_str!("jobs/verified_following.sql"),
        View::Home => include_str!("jobs/home.sql"),
    }
}

/// `sql` without the lines that are comments: where it is put into another query, they would hide what follows.
fn statement(sql: &str) -> String {
    sql.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n")
}

/// The query that gives `view` as of `time`: two text columns `key` and `value`, in no order.
pub fn definition(view: View, time: Time, parameters: &Parameters) -> String {
    PARTS
        .iter()
        .fold(statement(template(view)), |query, (name, part)| query.replace(name, &statement(part)))
        .replace(":time_ms", &format!("{time}::bigint"))
        .replace(":fanout_ms", &format!("{}::bigint", parameters.fanout_ms()))
        .replace(":active_days", &parameters.active_days.to_string())
        .replace(":hot_followers", &parameters.hot_followers.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_replaced() {
        for view in View::ALL {
            let query = definition(view, 1_700_000_000_000, &Parameters::default());
            assert!(!query.contains('@') && !query.contains("--"), "{query}");
            let colons = query.replace("::", "");
            assert!(!colons.contains(':'), "{query}");
            assert!(query.contains("AS key") && query.contains("AS value"), "{query}");
        }
    }
}
