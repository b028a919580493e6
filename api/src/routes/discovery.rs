//! What one did not ask anybody in particular for: trends, tags, accounts that one may want to follow.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use feedmill_model::{Phase, TrendWindow, text};
use feedmill_sinks::read::{hashtag_page, suggestions, trending_tags, trending_tweets};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::answer::{
    SuggestionBody, SuggestionsBody, TrendingTagBody, TrendingTagsBody, TrendingTweetBody, TrendingTweetsBody,
    TweetsBody, as_of,
};
use crate::cursor::list;
use crate::problem::{Failed, Kind, Problem};
use crate::reader::Reader;
use crate::request::{LimitQuery, List, ListQuery, Name, Top};
use crate::state::Shared;
use crate::viewer::Viewer;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct TrendQuery {
    /// How far back it looks.
    #[serde(default)]
    #[param(inline)]
    window: Window,
}

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
enum Window {
    #[serde(rename = "1h")]
    Hour,
    #[default]
    #[serde(rename = "24h")]
    Day,
}

impl From<Window> for TrendWindow {
    fn from(window: Window) -> Self {
        match window {
            Window::Hour => TrendWindow::Hour,
            Window::Day => TrendWindow::Day,
        }
    }
}

/// Lists the tags that most people use.
///
/// Ordered by how many people use them, then by how often. Accounts that are protected do not count.
#[utoipa::path(
    get, path = "/timeline/trending/hashtags", tag = "discovery", params(TrendQuery, LimitQuery),
    responses((status = 200, description = "The tags, the most used first.", body = TrendingTagsBody), Failed),
    security((), ("token" = [])),
)]
pub(crate) async fn trending_hashtags(
    State(context): State<Shared>,
    reader: Reader,
    top: Top<TrendQuery>,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Rows).await?;
    let window = TrendWindow::from(top.query.window);
    let tags = trending_tags(context.views.as_ref(), window, top.limit).await?;
    let hashtags = tags.value.iter().map(TrendingTagBody::from).collect();
    Ok(as_of(tags.time, Json(TrendingTagsBody { window: window.name(), hashtags })))
}

/// Lists the tweets that were liked most in 24 hours.
#[utoipa::path(
    get, path = "/timeline/trending/tweets", tag = "discovery", params(LimitQuery),
    responses((status = 200, description = "The tweets, the most liked first.", body = TrendingTweetsBody), Failed),
    security((), ("token" = [])),
)]
pub(crate) async fn trending(State(context): State<Shared>, reader: Reader, top: Top) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Reactions).await?;
    let trending = trending_tweets(context.views.as_ref(), reader.id(), top.limit).await?;
    let flags = context.flags(reader.id(), &trending.value).await?;
    let tweets = trending.value.iter().map(|liked| TrendingTweetBody::new(liked, &flags)).collect();
    Ok(as_of(trending.time, Json(TrendingTweetsBody { tweets })))
}

/// Reads the tweets with a tag, the newest first.
#[utoipa::path(
    get, path = "/timeline/search/hashtag/{tag}", tag = "discovery",
    params(("tag" = String, Path, description = "The tag without its sign, in any case.", max_length = 280), ListQuery),
    responses((status = 200, description = "A page of the tweets.", body = TweetsBody), Failed),
    security((), ("token" = [])),
)]
pub(crate) async fn hashtag(
    State(context): State<Shared>,
    reader: Reader,
    Name(tag): Name,
    list: List<i64, { list::HASHTAG }>,
) -> Result<Response, Problem> {
    context.catch_up_with_likes(&reader, Phase::Rows).await?;
    if !text::is_hashtag(&tag) {
        let told = "tag has letters, digits and `_`, not digits alone, and no sign before it.";
        return Err(Kind::MalformedRequest.because(told));
    }
    let page = hashtag_page(context.views.as_ref(), reader.id(), &tag, list.cursor, list.limit).await?;
    context.tweets(reader.id(), &list, &page).await
}

/// Lists accounts that you may want to follow: those that most of the accounts that you follow follow.
#[utoipa::path(
    get, path = "/suggestions", tag = "discovery", params(LimitQuery),
    responses((status = 200, description = "The accounts, those that most follow first.", body = SuggestionsBody), Failed),
    security(("token" = [])),
)]
pub(crate) async fn suggested(
    State(context): State<Shared>,
    reader: Reader<Viewer>,
    top: Top,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Rows).await?;
    let viewer = reader.id();
    let found = suggestions(context.views.as_ref(), &context.parameters, viewer, top.limit).await?;
    let flags = context.flags(Some(viewer), &found.value).await?;
    let suggestions = found.value.iter().map(|suggestion| SuggestionBody::new(suggestion, &flags)).collect();
    Ok(as_of(found.time, Json(SuggestionsBody { suggestions })))
}
