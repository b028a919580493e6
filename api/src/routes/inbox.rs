//! What happened to whoever asks.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use feedmill_model::{Notice, Phase};
use feedmill_sinks::read::{notifications_page, unread};

use crate::answer::{NotificationBody, NotificationsBody, UnreadBody, as_of};
use crate::cursor::list;
use crate::problem::{Failed, Problem};
use crate::reader::Reader;
use crate::request::{List, ListQuery};
use crate::state::Shared;
use crate::viewer::Viewer;

/// Reads what happened to you, the newest first.
///
/// Likes and retweets of one tweet are one notification while nothing else happened between them, and so are follows.
/// Nothing comes from accounts that you mute or block or that block you.
#[utoipa::path(
    get, path = "/notifications", tag = "notifications", params(ListQuery),
    responses((status = 200, description = "A page of them, and how much is unread.", body = NotificationsBody), Failed),
    security(("token" = [])),
)]
pub(crate) async fn notifications(
    State(context): State<Shared>,
    reader: Reader<Viewer>,
    list: List<Notice, { list::NOTIFICATIONS }>,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Reactions).await?;
    let (views, viewer) = (context.views.as_ref(), reader.id());
    let page = notifications_page(views, viewer, list.cursor, list.limit).await?;
    let unread = UnreadBody::from(unread(views, viewer).await?.value);
    let flags = context.flags(Some(viewer), &page.items).await?;
    let notifications = page.items.iter().map(|notification| NotificationBody::new(notification, &flags)).collect();
    let body = |next_cursor| NotificationsBody { notifications, unread, next_cursor };
    Ok(list.answer(page.time, page.next.as_ref(), body))
}

/// Counts what happened to you and is not read yet.
#[utoipa::path(
    get, path = "/notifications/unread", tag = "notifications",
    responses((status = 200, description = "How much it is.", body = UnreadBody), Failed),
    security(("token" = [])),
)]
pub(crate) async fn count_unread(State(context): State<Shared>, reader: Reader<Viewer>) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Reactions).await?;
    let unread = unread(context.views.as_ref(), reader.id()).await?;
    Ok(as_of(unread.time, Json(UnreadBody::from(unread.value))))
}
