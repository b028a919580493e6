//! Users, as clients get them.

use feedmill_model::User;
use feedmill_sinks::Profile;
use serde::Serialize;
use utoipa::ToSchema;

use super::flags::Flags;
use super::{IdText, TimeText};

/// What is shown of a user beside a tweet. The last five members are there for a reader who is signed in.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Author)]
pub(crate) struct AuthorBody<'a> {
    id: IdText,
    username: &'a str,
    display_name: &'a str,
    avatar_url: Option<&'a str>,
    verified: bool,
    /// Only accepted followers may read what the user writes.
    protected: bool,
    /// The reader follows the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    following: Option<bool>,
    /// The user follows the reader.
    #[serde(skip_serializing_if = "Option::is_none")]
    followed_by: Option<bool>,
    /// The reader has asked to follow the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    requested: Option<bool>,
    /// The reader blocks the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocking: Option<bool>,
    /// The reader mutes the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    muting: Option<bool>,
}

impl<'a> From<&'a User> for AuthorBody<'a> {
    fn from(user: &'a User) -> Self {
        AuthorBody {
            id: IdText(user.id),
            username: &user.username,
            display_name: &user.display_name,
            avatar_url: user.avatar_url.as_deref(),
            verified: user.verified,
            protected: user.protected,
            following: None,
            followed_by: None,
            requested: None,
            blocking: None,
            muting: None,
        }
    }
}

impl AuthorBody<'_> {
    /// The same with the flags of who reads.
    pub fn seen(self, flags: &Flags) -> Self {
        let Some(facts) = flags.of_user(self.id.0) else { return self };
        AuthorBody {
            following: Some(facts.following == Some(true)),
            followed_by: Some(facts.followed_by == Some(true)),
            requested: Some(facts.following == Some(false)),
            blocking: Some(facts.blocks),
            muting: Some(facts.mutes),
            ..self
        }
    }
}

/// A user.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = User)]
pub(crate) struct UserBody<'a> {
    #[serde(flatten)]
    shown: AuthorBody<'a>,
    bio: Option<&'a str>,
    created_at: TimeText,
    counts: UserCounts,
}

/// How many there are.
#[derive(Serialize, ToSchema)]
struct UserCounts {
    followers: i64,
    following: i64,
    tweets: i64,
}

impl<'a> From<&'a Profile> for UserBody<'a> {
    fn from(profile: &'a Profile) -> Self {
        let user = &profile.user;
        UserBody {
            shown: user.into(),
            bio: user.bio.as_deref(),
            created_at: TimeText(user.created_at),
            counts: UserCounts { followers: profile.followers, following: profile.following, tweets: profile.tweets },
        }
    }
}

impl UserBody<'_> {
    /// The same with the flags of who reads.
    pub fn seen(self, flags: &Flags) -> Self {
        UserBody { shown: self.shown.seen(flags), ..self }
    }
}

/// A page of users.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Users)]
pub(crate) struct UsersBody<'a> {
    pub users: Vec<UserBody<'a>>,
    /// Where the next page begins; `null` when there is nothing more. A page may be short, even empty, and have one.
    pub next_cursor: Option<String>,
}
