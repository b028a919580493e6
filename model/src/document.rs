//! What search finds.

use serde::{Deserialize, Serialize};

use crate::{Keyed, Timestamp, Tweet, User};

/// What search knows of a tweet or an account: what can be asked for, and no more, so that nothing else that changes
/// makes it be indexed again. Who may see it is decided where it is read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Document {
    /// A tweet that was not deleted; the key is the id.
    Tweet {
        /// Its id.
        id: i64,
        /// Who wrote it.
        user: i64,
        /// Its text.
        content: String,
        /// Whether media is attached.
        media: bool,
        /// When it was posted.
        at: Timestamp,
    },
    /// An account that was not deleted; the key is the id.
    Account {
        /// Its id.
        id: i64,
        /// Its name.
        username: String,
        /// Its name as shown.
        name: String,
    },
}

impl Document {
    /// The document of `tweet`; `None` if it was deleted.
    pub fn of_tweet(tweet: &Tweet) -> Option<Document> {
        tweet.deleted_at.is_none().then(|| Document::Tweet {
            id: tweet.id,
            user: tweet.user_id,
            content: tweet.content.clone(),
            media: tweet.media.as_deref().is_some_and(|media| media != "[]"),
            at: tweet.created_at,
        })
    }

    /// The document of the account `user`; `None` if it was deleted.
    pub fn of_account(user: &User) -> Option<Document> {
        user.deleted_at.is_none().then(|| Document::Account {
            id: user.id,
            username: user.username.clone(),
            name: user.display_name.clone(),
        })
    }
}

impl Keyed for Document {
    fn owner(&self) -> i64 {
        match self {
            Document::Tweet { id, .. } | Document::Account { id, .. } => *id,
        }
    }

    fn same_key(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.owner() == other.owner()
    }

    fn is_sum(&self) -> bool {
        false
    }
}
