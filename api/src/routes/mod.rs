//! The routes.

mod auth;
mod blocks;
mod discovery;
mod engagement;
mod export;
mod followers;
mod follows;
mod inbox;
mod lists;
mod me;
mod operations;
mod read_mark;
mod search;
mod stream;
mod threads;
mod timelines;
mod tweets;

pub(crate) use export::Exporting;
pub use operations::{starting, without_api};

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use feedmill_sinks::read::HomeCursor;
use tower::util::option_layer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::conditional::conditional;
use crate::cursor::list;
use crate::limits::admit;
use crate::observe::{compression, cors, observe, once_serving};
use crate::openapi;
use crate::own_writes::keep;
use crate::problem::{Kind, Problem};
use crate::reader::Reader;
use crate::request::List;
use crate::state::{Shared, State};
use crate::viewer::Viewer;

/// The API. Must be called in a tokio runtime.
pub fn app(state: State) -> Router {
    assemble(state, operations())
}

/// The API, of which `/api/timeline` answers a stored page to whoever is signed in: what reading is measured against.
pub fn app_with_stored_timeline(state: State, page: Bytes) -> Router {
    let answer = async move |_: Reader<Viewer>, _: List<HomeCursor, { list::HOME }>| {
        ([(header::CONTENT_TYPE, "application/json")], page.clone())
    };
    assemble(state, OpenApiRouter::new().route("/timeline", get(answer)))
}

fn assemble(state: State, operations: OpenApiRouter<Shared>) -> Router {
    let context = state.share();
    let api = operations
        .route_layer(from_fn(conditional))
        .route_layer(from_fn_with_state(context.clone(), keep))
        .route_layer(from_fn_with_state(context.clone(), once_serving))
        .route_layer(from_fn_with_state(context.clone(), admit));
    let (router, document) = OpenApiRouter::with_openapi(openapi::document())
        .nest("/api", api)
        .routes(routes!(operations::health))
        .routes(routes!(operations::ready))
        .routes(routes!(operations::metrics))
        .split_for_parts();
    router
        .merge(openapi::pages(document))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(context.settings.body_bytes_max))
        .layer(compression())
        .layer(option_layer(cors(&context.settings.cors_origins)))
        .layer(from_fn_with_state(context.clone(), observe))
        .with_state(context)
}

/// What is below `/api`.
fn operations() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(auth::register))
        .routes(routes!(auth::login))
        .routes(routes!(auth::verify))
        .routes(routes!(auth::refresh))
        .routes(routes!(auth::logout))
        .routes(routes!(auth::change_password))
        .routes(routes!(me::read, me::change, me::delete))
        .routes(routes!(export::export))
        .routes(routes!(tweets::create))
        .routes(routes!(tweets::read, tweets::delete))
        .routes(routes!(engagement::like, engagement::unlike))
        .routes(routes!(engagement::retweet, engagement::unretweet))
        .routes(routes!(follows::follow, follows::unfollow))
        .routes(routes!(lists::followers))
        .routes(routes!(lists::following))
        .routes(routes!(lists::follow_requests))
        .routes(routes!(lists::likes))
        .routes(routes!(lists::retweets))
        .routes(routes!(lists::blocks))
        .routes(routes!(lists::mutes))
        .routes(routes!(threads::conversation))
        .routes(routes!(threads::ancestors))
        .routes(routes!(followers::remove))
        .routes(routes!(followers::accept))
        .routes(routes!(followers::reject))
        .routes(routes!(blocks::block, blocks::unblock))
        .routes(routes!(blocks::mute, blocks::unmute))
        .routes(routes!(read_mark::mark))
        .routes(routes!(timelines::profile))
        .routes(routes!(timelines::of_user))
        .routes(routes!(timelines::home))
        .routes(routes!(discovery::trending_hashtags))
        .routes(routes!(discovery::trending))
        .routes(routes!(discovery::hashtag))
        .routes(routes!(discovery::suggested))
        .routes(routes!(search::search))
        .routes(routes!(inbox::notifications))
        .routes(routes!(inbox::count_unread))
        .routes(routes!(stream::open))
        .routes(routes!(stream::ticket))
}

async fn not_found(uri: Uri) -> Problem {
    Kind::NotFound.because(format!("There is no {}.", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Kind::MethodNotAllowed.because(format!("{} has no {method}; Allow says what it has.", uri.path()))
}
