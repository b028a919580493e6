//! The routes.

mod accounts;
mod follows;
mod operations;
mod timelines;
mod tweets;

pub use operations::starting;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use crate::observe::{observe, once_serving};
use crate::problem::{Kind, Problem};
use crate::state::State;

/// The API. Must be called in a tokio runtime.
pub fn app(state: State) -> Router {
    let context = state.share();
    let api = Router::new()
        .route("/auth/register", post(accounts::register))
        .route("/auth/login", post(accounts::login))
        .route("/auth/verify", get(accounts::verify))
        .route("/tweets", post(tweets::create))
        .route("/tweets/{id}", get(tweets::read).delete(tweets::delete))
        .route("/follows/{userId}", post(follows::follow).delete(follows::unfollow))
        .route("/follows/{userId}/followers", get(follows::followers))
        .route("/follows/{userId}/following", get(follows::following))
        .route("/users/{username}", get(timelines::profile))
        .route("/users/{username}/tweets", get(timelines::of_user))
        .route("/timeline", get(timelines::home))
        .route_layer(from_fn_with_state(context.clone(), once_serving));
    Router::new()
        .nest("/api", api)
        .route("/health", get(operations::health))
        .route("/ready", get(operations::ready))
        .route("/metrics", get(operations::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(context.settings.body_bytes_max))
        .layer(from_fn_with_state(context.clone(), observe))
        .with_state(context)
}

async fn not_found(uri: Uri) -> Problem {
    Kind::NotFound.because(format!("There is no {}.", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Kind::MethodNotAllowed.because(format!("{} has no {method}; Allow says what it has.", uri.path()))
}
