//! The one task that says who has to be looked at again.

use std::sync::{Arc, Weak};
use std::time::Instant;

use feedmill_sinks::{Changed, Views};
use tokio_util::sync::CancellationToken;

use super::{End, Live};
use crate::state::Looks;

/// Rounds, one whenever the views have moved, until `shutdown`, or until nobody can come any more.
pub(super) async fn run(views: Arc<dyn Views>, live: Weak<Live>, looks: Looks, shutdown: CancellationToken) {
    let listener = views.changes().listen();
    let mut moved = views.progress().watch();
    // What could not be told yet.
    let mut missed = false;
    loop {
        let goes_on = tokio::select! {
            moved = moved.changed() => moved.is_ok(),
            () = shutdown.cancelled() => false,
        };
        let Some(live) = live.upgrade() else { return };
        if !goes_on {
            return live.registry.end(End::Shutdown);
        }
        let began = Instant::now();
        let mut changed = listener.take();
        changed.anything |= missed;
        missed = round(views.as_ref(), &live, &changed).await.is_none();
        let took = began.elapsed();
        metrics::histogram!("feedmill_stream_round_seconds").record(took);
        drop(live);
        tokio::select! {
            () = tokio::time::sleep(looks.every.max(took * looks.part)) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// One round; `None` if the views cannot be read now.
async fn round(views: &dyn Views, live: &Live, changed: &Changed) -> Option<()> {
    let viewers = live.registry.viewers();
    if viewers.is_empty() {
        return Some(());
    }
    let mut authors: Vec<i64> = changed.timelines.iter().copied().collect();
    authors.sort_unstable();
    let heads = views.heads(&viewers, &authors).await;
    let heads = heads.inspect_err(|error| tracing::debug!(%error, "the heads cannot be read now")).ok()?;
    live.registry.tell(&viewers, &heads, changed);
    Some(())
}
