//! Search.

use axum::extract::State;
use axum::response::Response;
use feedmill_model::Phase;
use feedmill_sinks::read::{Page, SearchFrom, search_accounts_page, search_tweets_page};
use feedmill_sinks::search::{AccountQuery, Query, QueryError};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::answer::{TweetsBody, UsersBody};
use crate::cursor::{SearchCursor, list};
use crate::problem::{Failed, Kind, Problem};
use crate::reader::Reader;
use crate::request::{List, ListQuery, not_given_out};
use crate::state::{Context, Shared};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct SearchQuery {
    /// What is looked for. Of tweets: words, `"phrases"`, `#tag`, `@name`, `from:name`, `since:2026-02-28`,
    /// `until:2026-02-28`, `has:media`, each after `-` to leave it out. Of users: a name or its beginning.
    #[param(min_length = 1, max_length = 500, example = "hello -from:ada")]
    q: String,
    /// What is found.
    #[serde(default, rename = "type")]
    #[param(inline)]
    of: Type,
    /// In which order. Users are always ordered by relevance.
    #[param(inline)]
    sort: Option<Sort>,
}

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum Type {
    #[default]
    Tweets,
    Users,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum Sort {
    /// The newest first: what tweets come by.
    Latest,
    /// What fits best and is liked most first.
    Relevance,
}

/// What search answers: tweets or users, by `type`.
#[derive(Serialize, ToSchema)]
#[schema(as = Found)]
#[serde(untagged)]
#[expect(dead_code, reason = "it is the form of what either answers")]
pub(crate) enum FoundBody<'a> {
    Tweets(TweetsBody<'a>),
    Users(UsersBody<'a>),
}

/// Finds tweets or users.
///
/// What an account wrote that the reader mutes, blocks or may not read is not found. A query that is not understood is
/// answered with 400, and `position` says how many characters stand before what is wrong.
#[utoipa::path(
    get, path = "/search", tag = "discovery", params(SearchQuery, ListQuery),
    responses((status = 200, description = "A page of what was found.", body = FoundBody), Failed),
    security((), ("token" = [])),
)]
pub(crate) async fn search(
    State(context): State<Shared>,
    reader: Reader,
    list: List<SearchCursor, { list::SEARCH }, SearchQuery>,
) -> Result<Response, Problem> {
    match list.query.of {
        Type::Tweets => context.catch_up_with_likes(&reader, Phase::Search).await?,
        Type::Users => context.catch_up(&reader, Phase::Search).await?,
    }
    match (list.query.of, list.query.sort) {
        (Type::Tweets, sort) => context.found_tweets(reader.id(), &list, sort.unwrap_or(Sort::Latest)).await,
        (Type::Users, None | Some(Sort::Relevance)) => context.found_users(reader.id(), &list).await,
        (Type::Users, Some(Sort::Latest)) => {
            Err(Kind::MalformedRequest.because("Users are ordered by relevance: sort=latest is for tweets."))
        }
    }
}

type Search = List<SearchCursor, { list::SEARCH }, SearchQuery>;

impl Context {
    async fn found_tweets(&self, viewer: Option<i64>, list: &Search, sort: Sort) -> Result<Response, Problem> {
        let query = Query::parse(&list.query.q)?;
        let from = match (sort, list.cursor) {
            (Sort::Latest, None) => SearchFrom::Latest(None),
            (Sort::Relevance, None) => SearchFrom::Relevant(None),
            (Sort::Latest, Some(SearchCursor::Tweets(from @ SearchFrom::Latest(_))))
            | (Sort::Relevance, Some(SearchCursor::Tweets(from @ SearchFrom::Relevant(_)))) => from,
            _ => return Err(not_given_out()),
        };
        let (views, search) = (self.views.as_ref(), self.search.as_ref());
        let Page { items, next, time } = search_tweets_page(views, search, viewer, query, from, list.limit).await?;
        self.tweets(viewer, list, &Page { items, next: next.map(SearchCursor::Tweets), time }).await
    }

    async fn found_users(&self, viewer: Option<i64>, list: &Search) -> Result<Response, Problem> {
        let query = AccountQuery::parse(&list.query.q)?;
        let after = match list.cursor {
            None => None,
            Some(SearchCursor::Users(after)) => Some(after),
            Some(SearchCursor::Tweets(_)) => return Err(not_given_out()),
        };
        let (views, search) = (self.views.as_ref(), self.search.as_ref());
        let Page { items, next, time } = search_accounts_page(views, search, viewer, &query, after, list.limit).await?;
        self.users(viewer, list, &Page { items, next: next.map(SearchCursor::Users), time }).await
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        Kind::InvalidQuery.because(error.to_string()).with("position", error.at.into())
    }
}
