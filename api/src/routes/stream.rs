//! Streams of live updates.

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::answer::now_ms;
use crate::keys::Bearer;
use crate::live::{Client, Full, Mark, Resume, TICKET_S, WATCHED_MAX, serve_events, serve_socket, tweet_ids};
use crate::problem::{Failed, Kind, Problem};
use crate::state::{Context, Shared};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What comes with the address of a stream.
#[derive(Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(crate) struct StreamQuery {
    /// What the document has among the ways to sign in.
    #[param(ignore)]
    ticket: Option<String>,
    /// Ids of the tweets on screen, at most 100, with commas between them.
    #[param(pattern = "^(-?[0-9]{1,19}(,-?[0-9]{1,19}){0,99})?$", example = "111405301760,111405301761")]
    tweets: Option<String>,
    /// Id of the last event that the client has, where it cannot send `Last-Event-ID`.
    last_event_id: Option<String>,
}

/// Opens a stream of live updates: server-sent events, or messages of a WebSocket if the request asks for one.
///
/// The first event is `open`; from then on comes what is new: `entry` (a tweet that came into the home timeline),
/// `notification`, `unread` (how many are not read), `counts` and `gone` (of the tweets on screen), `reset` (more was
/// missed than is sent: load `timeline` or `notifications` again), and at the end `closed` with the reason. Open the stream
/// first and load the lists then, so that nothing is missed in between; what is in both has the same id.
///
/// A message of a WebSocket is `{"event": …, "id": …, "data": …}`, and at its end the reason is that of the close frame. Its
/// client may send `{"watch": ["1", "2"]}`: the tweets that are on screen now.
#[utoipa::path(
    get, path = "/stream", tag = "live",
    params(StreamQuery, ("Last-Event-ID" = Option<String>, Header, description = "Goes on after this event.")),
    responses(
        (status = 200, description = "Events, until the stream ends.", body = String, content_type = "text/event-stream"),
        (status = 101, description = "A WebSocket, if the request has asked for one."),
        Failed,
    ),
    security(("token" = []), ("ticket" = [])),
)]
pub(crate) async fn open(
    State(context): State<Shared>,
    holder: Option<Bearer>,
    query: Result<Query<StreamQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|rejection| Kind::MalformedRequest.because(rejection.body_text()))?;
    let upgrade = match upgrade {
        Ok(upgrade) => Some(upgrade),
        Err(rejection) if headers.contains_key(header::UPGRADE) => {
            return Err(Kind::MalformedRequest.because(rejection.body_text()));
        }
        Err(_) => None,
    };
    let on_screen = query.tweets.as_deref().filter(|tweets| !tweets.is_empty());
    let on_screen = on_screen.map_or_else(|| Some(Vec::new()), |tweets| tweet_ids(tweets.split(',')));
    let on_screen = on_screen.ok_or_else(|| {
        Kind::InvalidId.because(format!("tweets are at most {WATCHED_MAX} ids with commas between them."))
    })?;
    let bearer = match holder {
        Some(bearer) => bearer,
        None => context.holder(query.ticket.as_deref()).await?,
    };
    let last = headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or_default());
    let last = last.or(query.last_event_id.as_deref()).filter(|id| !id.is_empty());
    // One of another version, say: who sends it goes on, and knows that something is missing.
    let resume = last.map_or(Resume::Anew, |id| Mark::of(id).map_or(Resume::Unknown, Resume::After));
    let transport = if upgrade.is_some() { "websocket" } else { "sse" };
    let place = context.live.join(bearer.user, transport).map_err(|full| match full {
        Full::User => Kind::TooManyStreams.because("Close one of your streams first."),
        Full::Instance => Kind::NoStreamLeft.because("Come again in a moment: another instance may have room."),
    })?;
    let client = Client::new(context, place, bearer, resume, on_screen);
    Ok(match upgrade {
        Some(upgrade) => serve_socket(upgrade, client),
        None => serve_events(client),
    })
}

/// A ticket.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Ticket)]
pub(crate) struct TicketBody {
    /// What `?ticket=` takes.
    ticket: String,
    /// For how many seconds.
    expires_in: u64,
}

/// Gives a ticket for a stream, for clients that cannot send headers there: `EventSource` and `WebSocket` of browsers.
#[utoipa::path(
    post, path = "/stream/ticket", tag = "live",
    responses((status = 201, description = "A ticket.", body = TicketBody), Failed), security(("token" = [])),
)]
pub(crate) async fn ticket(State(context): State<Shared>, bearer: Bearer) -> Result<Response, Problem> {
    let ticket = context.tickets.ticket(bearer, now_s()).ok_or_else(|| {
        tracing::error!("a ticket could not be signed");
        Kind::Internal.because("The ticket could not be signed.")
    })?;
    Ok((StatusCode::CREATED, Json(TicketBody { ticket, expires_in: TICKET_S })).into_response())
}

fn now_s() -> u64 {
    now_ms() / 1_000
}

impl Context {
    /// Whose ticket it is.
    async fn holder(&self, ticket: Option<&str>) -> Result<Bearer, Problem> {
        let refused = |told| Kind::Unauthenticated.because(told);
        let ticket = ticket.ok_or_else(|| {
            refused("Send `Authorization: Bearer <token>`, or the ticket that POST /api/stream/ticket gives.")
        })?;
        let not_valid = "The ticket is not valid, or not any more. Ask for another.";
        let bearer = self.tickets.bearer(ticket, now_s()).ok_or_else(|| refused(not_valid))?;
        if self.admit(&bearer).await? { Ok(bearer) } else { Err(refused(not_valid)) }
    }
}
