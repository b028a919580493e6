//! What answers a tweet, and what it answers.

use axum::extract::State;
use axum::response::Response;
use feedmill_model::Phase;
use feedmill_sinks::read::{ThreadCursor, ThreadOrder, ancestors_page, thread_page};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::tweets::shown;
use crate::answer::{AncestorBody, AncestorsBody, ConversationBody, ReplyBody};
use crate::cursor::list;
use crate::problem::{Failed, Problem};
use crate::reader::Reader;
use crate::request::{Id, List, ListQuery};
use crate::state::Shared;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ThreadQuery {
    /// In which order the answers to the tweet come. What is below each of them comes by time.
    #[serde(default)]
    #[param(inline)]
    order: Order,
}

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum Order {
    /// By time.
    #[default]
    Time,
    /// Those by the author of the thread first.
    AuthorFirst,
}

impl From<Order> for ThreadOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::Time => ThreadOrder::Time,
            Order::AuthorFirst => ThreadOrder::AuthorFirst,
        }
    }
}

/// Reads the replies below a tweet, depth first.
///
/// A reply that was deleted keeps its place, without a tweet. One that the reader may not see is left out; what answers it
/// keeps its depth and names it as its parent.
#[utoipa::path(
    get, path = "/tweets/{id}/conversation", tag = "tweets", params(("id" = String, Path, description = "Which."), ThreadQuery, ListQuery),
    responses((status = 200, description = "A page of the replies, depth first.", body = ConversationBody), Failed),
    security((), ("token" = [])),
)]
pub(crate) async fn conversation(
    State(context): State<Shared>,
    reader: Reader,
    Id(id): Id,
    mut list: List<ThreadCursor, { list::CONVERSATION }, ThreadQuery>,
) -> Result<Response, Problem> {
    context.catch_up_with_likes(&reader, Phase::Rows).await?;
    let (order, cursor) = (list.query.order.into(), list.cursor.take());
    let page = shown(thread_page(context.views.as_ref(), reader.id(), id, order, cursor, list.limit).await?)?;
    let flags = context.flags(reader.id(), &page.items).await?;
    let replies = page.items.iter().map(|reply| ReplyBody::new(reply, &flags)).collect();
    Ok(list.answer(page.time, page.next.as_ref(), |next_cursor| ConversationBody { replies, next_cursor }))
}

/// Reads what a tweet answers, up to the first tweet of its thread.
///
/// The nearest are on the first page, each page in the order in which they were written. What was deleted and what the
/// reader may not see are named by their ids alone.
#[utoipa::path(
    get, path = "/tweets/{id}/ancestors", tag = "tweets", params(("id" = String, Path, description = "Which."), ListQuery),
    responses((status = 200, description = "A page of what the tweet answers, the highest first.", body = AncestorsBody), Failed),
    security((), ("token" = [])),
)]
pub(crate) async fn ancestors(
    State(context): State<Shared>,
    reader: Reader,
    Id(id): Id,
    list: List<i64, { list::ANCESTORS }>,
) -> Result<Response, Problem> {
    context.catch_up_with_likes(&reader, Phase::Rows).await?;
    let page = shown(ancestors_page(context.views.as_ref(), reader.id(), id, list.cursor, list.limit).await?)?;
    let flags = context.flags(reader.id(), &page.items).await?;
    let ancestors = page.items.iter().map(|ancestor| AncestorBody::new(ancestor, &flags)).collect();
    Ok(list.answer(page.time, page.next.as_ref(), |next_cursor| AncestorsBody { ancestors, next_cursor }))
}
