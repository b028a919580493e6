//! From commit to visible: a follower's timeline is read again and again until the post shows in it.
//!
//! It is told without the help of what is measured: no consistency token, which would make the system hurry for the
//! sample. A sample is late by at most the pause between two reads and the time of one read.

use std::time::Duration;

use feedmill_model::ms_of;
use tokio::time::{Instant, sleep};

use super::client::{Client, RequestError};

/// A post that has not shown by then is an error.
pub const VISIBLE_MAX: Duration = Duration::from_secs(30);
/// The first pauses between two reads; later ones are a tenth of what has passed.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// A post that is later than this is waited for by its own row, which is read for a fraction of what a timeline costs and
/// is there before it shows in any: the samples of a slow system must not be what makes it slow.
const LATE_AFTER: Duration = Duration::from_millis(100);
/// Longer timelines are read once so much has passed that other posts can stand above.
const DEEP_AFTER: Duration = Duration::from_secs(2);

/// Why a post was not seen.
#[derive(Debug, thiserror::Error)]
pub enum VisibleError {
    /// It did not show.
    #[error("tweet {tweet} was not in the timeline of user {viewer} after {VISIBLE_MAX:?}")]
    Never {
        /// The post.
        tweet: i64,
        /// Whose timeline.
        viewer: i64,
    },
    /// The timeline could not be read.
    #[error(transparent)]
    Read(#[from] RequestError),
}

impl VisibleError {
    /// What errors are counted by.
    pub fn kind(&self) -> String {
        match self {
            VisibleError::Never { .. } => "never".to_owned(),
            VisibleError::Read(error) => error.kind(),
        }
    }
}

/// When the id of `tweet` was minted: just before its commit, by the clock of this machine, on which PostgreSQL runs too.
/// What is counted from here never flatters.
pub fn minted_at(tweet: i64) -> Instant {
    let now_ms = i64::try_from(crate::up::now_ms()).unwrap_or(i64::MAX);
    let ago = u64::try_from(now_ms.saturating_sub(ms_of(tweet))).unwrap_or(0);
    let now = Instant::now();
    now.checked_sub(Duration::from_millis(ago)).unwrap_or(now)
}

/// How long after `committed` the tweet shows in the viewer's timeline.
pub async fn seen(client: &Client, viewer: i64, tweet: i64, committed: Instant) -> Result<Duration, VisibleError> {
    let wanted = format!("\"id\":\"{tweet}\"");
    while committed.elapsed() < VISIBLE_MAX {
        if committed.elapsed() > LATE_AFTER && !is_there(client, viewer, tweet).await? {
            sleep(committed.elapsed() / 10).await;
            continue;
        }
        let path = if committed.elapsed() < DEEP_AFTER { "/api/timeline?limit=20" } else { "/api/timeline?limit=100" };
        let answer = client.get(path, Some(viewer)).await?;
        if str::from_utf8(&answer.body).is_ok_and(|page| page.contains(&wanted)) {
            return Ok(committed.elapsed());
        }
        sleep(PAUSE_MIN.max(committed.elapsed() / 10)).await;
    }
    Err(VisibleError::Never { tweet, viewer })
}

/// Whether the row of a tweet is there. The viewer asks: there is a limit to what one address may read without a token.
async fn is_there(client: &Client, viewer: i64, tweet: i64) -> Result<bool, RequestError> {
    match client.get(&format!("/api/tweets/{tweet}"), Some(viewer)).await {
        Ok(_) => Ok(true),
        Err(RequestError::Status { status: 404, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
