//! Streams of a client that takes nothing yet.

use axum::body::to_bytes;
use serde_json::Value;
use tokio::time::timeout;
use tower::ServiceExt;

use crate::world::{LIMIT, World, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ended_before_the_client_takes_something_is_told_that_alone() {
    let world = World::new("ended").await;
    let ada = world.register("ada").await;
    world.catch_up().await;
    let stream = world.router.clone().oneshot(request("GET", "/api/stream", Some(&ada), None)).await.unwrap();
    assert_eq!(stream.status(), 200);
    world.post("/api/auth/logout", Some(&ada), Value::Null).await.is(204);
    let text = timeout(LIMIT, to_bytes(stream.into_body(), usize::MAX)).await.expect("it ends").unwrap();
    let text = std::str::from_utf8(&text).unwrap();
    assert!(text.contains("signed-out") && !text.contains("event: open"), "{text}");
}
