//! Rows of the published relations.

use serde::{Deserialize, Serialize};

/// Microseconds since 1970; `i64::MAX` and `i64::MIN` are PostgreSQL's `infinity` and `-infinity`.
pub type Timestamp = i64;

/// A published table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Relation {
    /// `users`
    Users = 1,
    /// `tweets`
    Tweets = 2,
    /// `follows`
    Follows = 3,
    /// `likes`
    Likes = 4,
    /// `retweets`
    Retweets = 5,
    /// `blocks`
    Blocks = 6,
    /// `mutes`
    Mutes = 7,
    /// `activity`
    Activity = 8,
    /// `popular`
    Popular = 9,
    /// `read_marks`
    ReadMarks = 10,
}

impl Relation {
    /// All relations, in the order in which they are copied.
    pub const ALL: [Relation; 10] = [
        Relation::Users,
        Relation::Tweets,
        Relation::Follows,
        Relation::Likes,
        Relation::Retweets,
        Relation::Blocks,
        Relation::Mutes,
        Relation::Activity,
        Relation::Popular,
        Relation::ReadMarks,
    ];

    /// All relations, in the order in which their rows are loaded into the dataflows.
    ///
    /// Few rows that decide over many come first, so that little is derived only to be withdrawn by a later slice: who
    /// is active and who is hot decide which follows and entries are joined at all, mutes and blocks take pairs out of
    /// the audience, and a deleted tweet takes out its retweets. Follows come last of what home timelines are joined
    /// from: by then the entries of the month are one settled arrangement, and each slice of follows meets it once.
    pub const LOAD_ORDER: [Relation; 10] = [
        Relation::Activity,
        Relation::Popular,
        Relation::Users,
        Relation::Mutes,
        Relation::Blocks,
        Relation::Tweets,
        Relation::Retweets,
        Relation::Follows,
        Relation::Likes,
        Relation::ReadMarks,
    ];

    /// Name of the table in the source.
    pub const fn table(self) -> &'static str {
        match self {
            Relation::Users => "users",
            Relation::Tweets => "tweets",
            Relation::Follows => "follows",
            Relation::Likes => "likes",
            Relation::Retweets => "retweets",
            Relation::Blocks => "blocks",
            Relation::Mutes => "mutes",
            Relation::Activity => "activity",
            Relation::Popular => "popular",
            Relation::ReadMarks => "read_marks",
        }
    }

    /// The columns that Feedmill reads, in the order of the fields of the row's type. The primary key comes first.
    pub const fn columns(self) -> &'static [&'static str] {
        match self {
            Relation::Users => &[
                "id",
                "username",
                "display_name",
                "bio",
                "avatar_url",
                "verified",
                "protected",
                "created_at",
                "updated_at",
                "deleted_at",
            ],
            Relation::Tweets => &[
                "id",
                "user_id",
                "content",
                "reply_to_id",
                "conversation_id",
                "media",
                "created_at",
                "updated_at",
                "deleted_at",
            ],
            Relation::Follows => &["follower_id", "following_id", "accepted", "created_at"],
            Relation::Likes => &["user_id", "tweet_id", "created_at"],
            Relation::Retweets => &["id", "user_id", "tweet_id", "created_at"],
            Relation::Blocks => &["blocker_id", "blocked_id"],
            Relation::Mutes => &["muter_id", "muted_id"],
            Relation::Activity => &["user_id", "day"],
            Relation::Popular => &["user_id"],
            Relation::ReadMarks => &["user_id", "notifications_id"],
        }
    }

    /// How many of the [`Self::columns`] are the primary key.
    pub const fn key_columns(self) -> usize {
        match self {
            Relation::Users | Relation::Tweets | Relation::Retweets | Relation::Popular | Relation::ReadMarks => 1,
            Relation::Follows | Relation::Likes | Relation::Blocks | Relation::Mutes | Relation::Activity => 2,
        }
    }
}

/// A row of `users`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct User {
    /// Primary key.
    pub id: i64,
    /// Unique whatever its case.
    pub username: String,
    /// Name as shown.
    pub display_name: String,
    /// What the user says of themselves.
    pub bio: Option<String>,
    /// Picture.
    pub avatar_url: Option<String>,
    /// Verified accounts are hot: their entries are merged at read.
    pub verified: bool,
    /// Only accepted followers may read.
    pub protected: bool,
    /// When the account was made.
    pub created_at: Timestamp,
    /// When the row last changed.
    pub updated_at: Timestamp,
    /// When the account was deleted; the row stays, emptied.
    pub deleted_at: Option<Timestamp>,
}

/// A row of `tweets`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tweet {
    /// Primary key, time-ordered.
    pub id: i64,
    /// Author.
    pub user_id: i64,
    /// Text of at most 280 characters; empty once deleted.
    pub content: String,
    /// The tweet that this one answers, whose id is smaller.
    pub reply_to_id: Option<i64>,
    /// The first tweet of the thread, this one itself if it answers none.
    pub conversation_id: i64,
    /// Attached media, JSON as PostgreSQL prints it.
    pub media: Option<String>,
    /// When it was posted.
    pub created_at: Timestamp,
    /// When the row last changed.
    pub updated_at: Timestamp,
    /// When it was deleted; the row stays so that its replies keep their place.
    pub deleted_at: Option<Timestamp>,
}

/// A row of `follows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Follow {
    /// Who follows.
    pub follower_id: i64,
    /// Who is followed.
    pub following_id: i64,
    /// `false` while the follow is only requested.
    pub accepted: bool,
    /// When it began.
    pub created_at: Timestamp,
}

/// A row of `likes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Like {
    /// Who likes.
    pub user_id: i64,
    /// What is liked.
    pub tweet_id: i64,
    /// Since when.
    pub created_at: Timestamp,
}

/// A row of `retweets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Retweet {
    /// Primary key, time-ordered, drawn from the same sequence as the ids of tweets.
    pub id: i64,
    /// Who retweets.
    pub user_id: i64,
    /// What is retweeted.
    pub tweet_id: i64,
    /// When.
    pub created_at: Timestamp,
}

/// A row of `blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Block {
    /// Who blocks.
    pub blocker_id: i64,
    /// Who is blocked.
    pub blocked_id: i64,
}

/// A row of `mutes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mute {
    /// Who mutes.
    pub muter_id: i64,
    /// Who is muted.
    pub muted_id: i64,
}

/// A row of `activity`: the user did something on that day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Activity {
    /// Who.
    pub user_id: i64,
    /// Days since 1970, UTC.
    pub day: i32,
}

/// A row of `popular`, which Feedmill itself writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Popular {
    /// Who has at least `hot_followers` followers.
    pub user_id: i64,
}

/// A row of `read_marks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReadMark {
    /// Whose mark.
    pub user_id: i64,
    /// The newest notification that was read.
    pub notifications_id: i64,
}

/// A row of any relation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Row {
    /// Of `users`.
    User(Box<User>),
    /// Of `tweets`.
    Tweet(Box<Tweet>),
    /// Of `follows`.
    Follow(Follow),
    /// Of `likes`.
    Like(Like),
    /// Of `retweets`.
    Retweet(Retweet),
    /// Of `blocks`.
    Block(Block),
    /// Of `mutes`.
    Mute(Mute),
    /// Of `activity`.
    Activity(Activity),
    /// Of `popular`.
    Popular(Popular),
    /// Of `read_marks`.
    ReadMark(ReadMark),
}

/// A primary key: the relation, then the columns of the key. The second is 0 where the key has one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Of which table.
    pub relation: Relation,
    /// First column of the key.
    pub first: i64,
    /// Second column of the key, or 0.
    pub second: i64,
}

impl Row {
    /// The relation of the row.
    pub const fn relation(&self) -> Relation {
        match self {
            Row::User(_) => Relation::Users,
            Row::Tweet(_) => Relation::Tweets,
            Row::Follow(_) => Relation::Follows,
            Row::Like(_) => Relation::Likes,
            Row::Retweet(_) => Relation::Retweets,
            Row::Block(_) => Relation::Blocks,
            Row::Mute(_) => Relation::Mutes,
            Row::Activity(_) => Relation::Activity,
            Row::Popular(_) => Relation::Popular,
            Row::ReadMark(_) => Relation::ReadMarks,
        }
    }

    /// The primary key of the row.
    pub fn key(&self) -> Key {
        let (first, second) = match self {
            Row::User(row) => (row.id, 0),
            Row::Tweet(row) => (row.id, 0),
            Row::Follow(row) => (row.follower_id, row.following_id),
            Row::Like(row) => (row.user_id, row.tweet_id),
            Row::Retweet(row) => (row.id, 0),
            Row::Block(row) => (row.blocker_id, row.blocked_id),
            Row::Mute(row) => (row.muter_id, row.muted_id),
            Row::Activity(row) => (row.user_id, i64::from(row.day)),
            Row::Popular(row) => (row.user_id, 0),
            Row::ReadMark(row) => (row.user_id, 0),
        };
        Key { relation: self.relation(), first, second }
    }

    /// Takes over from `old` the columns that PostgreSQL did not send because they are unchanged (TOAST). Bit `i` of
    /// `unchanged` stands for column `i` of [`Relation::columns`]. Only text columns can be stored out of line.
    pub fn fill_unchanged(&mut self, unchanged: u32, old: &Row) {
        let is = |column: u32| unchanged & (1 << column) != 0;
        match (self, old) {
            (Row::User(new), Row::User(old)) => {
                if is(1) {
                    new.username.clone_from(&old.username);
                }
                if is(2) {
                    new.display_name.clone_from(&old.display_name);
                }
                if is(3) {
                    new.bio.clone_from(&old.bio);
                }
                if is(4) {
                    new.avatar_url.clone_from(&old.avatar_url);
                }
            }
            (Row::Tweet(new), Row::Tweet(old)) => {
                if is(2) {
                    new.content.clone_from(&old.content);
                }
                if is(5) {
                    new.media.clone_from(&old.media);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_columns_come_from_the_old_row() {
        let old = Row::User(Box::new(User {
            id: 1,
            bio: Some("long".into()),
            display_name: "Ada".into(),
            ..User::default()
        }));
        let mut new = Row::User(Box::new(User { id: 1, display_name: "Ada L.".into(), ..User::default() }));
        new.fill_unchanged(1 << 3, &old);
        let Row::User(new) = new else { unreachable!("it was a user") };
        assert_eq!((new.bio.as_deref(), new.display_name.as_str()), (Some("long"), "Ada L."));
    }

    #[test]
    fn a_relation_names_the_columns_that_can_be_unchanged() {
        let columns = Relation::Users.columns();
        assert_eq!([columns[1], columns[2], columns[3], columns[4]], ["username", "display_name", "bio", "avatar_url"]);
        let columns = Relation::Tweets.columns();
        assert_eq!([columns[2], columns[5]], ["content", "media"]);
    }
}
