//! Trends and suggestions, as clients get them.

use feedmill_sinks::TrendingTag;
use feedmill_sinks::read::{LikedTweet, Suggestion};
use serde::Serialize;
use utoipa::ToSchema;

use super::flags::Flags;
use super::{TweetBody, UserBody};

/// A tag that many use.
#[derive(Serialize, ToSchema)]
#[schema(as = TrendingHashtag)]
pub(crate) struct TrendingTagBody<'a> {
    /// In the form that all ways to write it have in common.
    tag: &'a str,
    /// How many people use it.
    authors: u64,
    /// In how many tweets.
    uses: u64,
}

impl<'a> From<&'a TrendingTag> for TrendingTagBody<'a> {
    fn from(TrendingTag { tag, authors, uses }: &'a TrendingTag) -> Self {
        TrendingTagBody { tag, authors: *authors, uses: *uses }
    }
}

/// The tags that most people use.
#[derive(Serialize, ToSchema)]
#[schema(as = TrendingHashtags)]
pub(crate) struct TrendingTagsBody<'a> {
    /// How far back it looks: `1h` or `24h`.
    pub window: &'static str,
    pub hashtags: Vec<TrendingTagBody<'a>>,
}

/// A tweet that many like now.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TrendingTweet)]
pub(crate) struct TrendingTweetBody<'a> {
    #[serde(flatten)]
    tweet: TweetBody<'a>,
    /// How many liked it in 24 hours.
    likes_in_window: u64,
}

impl<'a> TrendingTweetBody<'a> {
    /// One of them, with the flags of who reads.
    pub fn new(liked: &'a LikedTweet, flags: &Flags) -> Self {
        TrendingTweetBody { tweet: TweetBody::from(&liked.tweet).seen(flags), likes_in_window: liked.likes }
    }
}

/// The tweets that were liked most.
#[derive(Serialize, ToSchema)]
#[schema(as = TrendingTweets)]
pub(crate) struct TrendingTweetsBody<'a> {
    pub tweets: Vec<TrendingTweetBody<'a>>,
}

/// An account that one may want to follow.
#[derive(Serialize, ToSchema)]
#[schema(as = Suggestion)]
pub(crate) struct SuggestionBody<'a> {
    user: UserBody<'a>,
    /// How many of the accounts that you follow follow it, as far as was looked.
    mutual: usize,
}

impl<'a> SuggestionBody<'a> {
    /// One of them, with the flags of who reads.
    pub fn new(suggestion: &'a Suggestion, flags: &Flags) -> Self {
        SuggestionBody { user: UserBody::from(suggestion.profile.as_ref()).seen(flags), mutual: suggestion.mutual }
    }
}

/// Accounts that one may want to follow.
#[derive(Serialize, ToSchema)]
#[schema(as = Suggestions)]
pub(crate) struct SuggestionsBody<'a> {
    pub suggestions: Vec<SuggestionBody<'a>>,
}
