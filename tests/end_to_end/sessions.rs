//! How one stays signed in, and how that ends.

use std::time::Duration;

use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::system::{Account, Answer, PASSWORD, Session, System};

async fn refresh(system: &System, token: &str) -> Answer {
    system.post("/api/auth/refresh", None, json!({ "refreshToken": token })).await
}

/// What a refresh gave, of the same user.
fn renewed(before: &Session, body: &Value) -> Session {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let account = Account { id: before.account.id.clone(), token: text(&body["token"]) };
    Session { account, refresh: text(&body["refreshToken"]) }
}

async fn is_signed_in(system: &System, session: &Session) -> bool {
    let answer = system.get("/api/auth/verify", Some(&session.account)).await;
    if answer.status != 200 {
        answer.is_problem(401, "unauthenticated");
    }
    answer.status == 200
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_renewed_and_ends_when_an_old_token_is_used_again() {
    let system = System::start(&[]).await;
    system.register("ada").await;
    let first = system.login("ada").await;
    let other = system.login("ada").await;
    let answer = refresh(&system, &first.refresh).await;
    let body = answer.is(200);
    assert_eq!(body["expiresIn"], 900);
    let second = renewed(&first, &body);
    assert_ne!(first.refresh, second.refresh);
    for session in [&first, &second, &other] {
        assert!(is_signed_in(&system, session).await);
    }
    let third = renewed(&second, &refresh(&system, &second.refresh).await.is(200));

    // Only hashes are kept, of which none can be sent.
    let sql = system.sql().await;
    let kept: String = sql.query_one("SELECT string_agg(s::text, ' ') FROM sessions AS s", &[]).await.unwrap().get(0);
    assert!(!kept.contains(&third.refresh) && !system.log().contains(&third.refresh));

    // A thief, or the owner after a thief, has an old one: both have to sign in again, at once and everywhere.
    refresh(&system, &first.refresh).await.is_problem(401, "unauthenticated");
    refresh(&system, &third.refresh).await.is_problem(401, "unauthenticated");
    for session in [&first, &second, &third] {
        assert!(!is_signed_in(&system, session).await);
    }
    assert!(is_signed_in(&system, &other).await);

    // Who knows neither secret changes nothing.
    for forged in ["", "x", &other.refresh[1..], &format!("{}A", &other.refresh[..other.refresh.len() - 30])] {
        refresh(&system, forged).await.is_problem(401, "unauthenticated");
    }
    let mut forged = other.refresh.clone().into_bytes();
    forged[20] = if forged[20] == b'A' { b'B' } else { b'A' };
    refresh(&system, std::str::from_utf8(&forged).unwrap()).await.is_problem(401, "unauthenticated");
    assert!(is_signed_in(&system, &other).await);
    refresh(&system, &other.refresh).await.is(200);
    for (body, error) in [(json!({}), "invalid-body"), (json!({ "refreshToken": 1 }), "invalid-body")] {
        system.post("/api/auth/refresh", None, body).await.is_problem(422, error);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_refreshes_at_the_same_time_one_wins_and_the_session_ends() {
    let system = System::start(&[]).await;
    system.register("ada").await;
    let session = system.login("ada").await;
    let tried = futures::future::join_all((0..8).map(|_| refresh(&system, &session.refresh))).await;
    let won: Vec<&Answer> = tried.iter().filter(|answer| answer.status == 200).collect();
    assert_eq!(won.len(), 1, "{tried:?}");
    assert!(!is_signed_in(&system, &session).await);
    let last = renewed(&session, &won[0].body);
    refresh(&system, &last.refresh).await.is_problem(401, "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_out_ends_the_session_here_at_once_and_elsewhere_within_a_moment() {
    let mut postgres = Postgres::new(&[]).await;
    let system = System::start_on(&postgres, &[]).await;
    let ada = system.register("ada").await;
    let (one, other, third) = (system.login("ada").await, system.login("ada").await, system.login("ada").await);
    system.post("/api/auth/logout", None, Value::Null).await.is_problem(401, "unauthenticated");
    system.post("/api/auth/logout", Some(&one.account), Value::Null).await.is(204);
    assert!(!is_signed_in(&system, &one).await && is_signed_in(&system, &other).await);
    refresh(&system, &one.refresh).await.is_problem(401, "unauthenticated");
    system.post("/api/auth/logout", Some(&one.account), Value::Null).await.is_problem(401, "unauthenticated");

    // As another instance does it.
    let sql = system.sql().await;
    let ends = "UPDATE sessions SET revoked_at = now() WHERE id = (SELECT max(id) FROM sessions)";
    sql.batch_execute(ends).await.unwrap();
    system.until("it is known", async |system| !is_signed_in(system, &third).await).await;

    // What is known goes on to count while PostgreSQL is away, and reads go on.
    postgres.stop_fast();
    assert!(!is_signed_in(&system, &one).await && !is_signed_in(&system, &third).await);
    assert!(is_signed_in(&system, &other).await);
    refresh(&system, &other.refresh).await.is_problem(503, "database-unavailable");
    postgres.start().await;
    system.until("it is refreshed", async |system| refresh(system, &other.refresh).await.status == 200).await;
    // A token of the operator's own has no session that could end.
    let operator = system.account(ada.id.parse().unwrap());
    system.post("/api/auth/logout", Some(&operator), Value::Null).await.is(204);
    system.get("/api/auth/verify", Some(&operator)).await.is(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_ends_the_other_sessions() {
    let system = System::start(&[]).await;
    system.register("ada").await;
    let (one, other) = (system.login("ada").await, system.login("ada").await);
    let change = async |old: &str, new: &str| {
        let body = json!({ "password": old, "newPassword": new });
        system.post("/api/auth/password", Some(&one.account), body).await
    };
    change("wrong", "staple battery horse").await.is_problem(403, "wrong-password");
    change(PASSWORD, "short").await.is_problem(422, "invalid-field");
    assert!(is_signed_in(&system, &other).await);
    change(PASSWORD, "staple battery horse").await.is(204);
    assert!(is_signed_in(&system, &one).await && !is_signed_in(&system, &other).await);
    refresh(&system, &other.refresh).await.is_problem(401, "unauthenticated");
    refresh(&system, &one.refresh).await.is(200);
    let login = async |password: &str| {
        system.post("/api/auth/login", None, json!({ "username": "ada", "password": password })).await
    };
    login(PASSWORD).await.is_problem(401, "invalid-credentials");
    login("staple battery horse").await.is(200);
    change(PASSWORD, "another battery").await.is_problem(403, "wrong-password");
    for secret in [PASSWORD, "staple battery horse", &one.refresh, &one.account.token] {
        assert!(!system.log().contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_while_it_runs_and_nobody_is_signed_out() {
    let system = System::start(&[]).await;
    system.register("ada").await;
    let before = system.login("ada").await;
    let file = system.data().join("keys");
    let old = std::fs::read_to_string(&file).unwrap();
    let secret = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldA";
    std::fs::write(&file, format!("rotated {secret}\n{old}")).unwrap();
    // {"typ":"JWT","alg":"HS256","kid":"rotated"}: the names of keys stand in the tokens that they sign.
    let kid = |session: &Session| session.account.token.split('.').next().unwrap().to_owned();
    let mut after = before.clone();
    system
        .until("the new key signs", async |system| {
            after = system.login("ada").await;
            kid(&after) != kid(&before)
        })
        .await;
    assert!(is_signed_in(&system, &before).await && is_signed_in(&system, &after).await);
    // A file that is no file of keys changes nothing.
    std::fs::write(&file, "half a li").unwrap();
    system.until("it says so", async |system| system.log().contains("line 1 of the key file")).await;
    assert!(is_signed_in(&system, &before).await && is_signed_in(&system, &after).await);
    // With its key, a token goes; the session can be renewed.
    std::fs::write(&file, format!("rotated {secret}\n")).unwrap();
    system.until("the old key is gone", async |system| !is_signed_in(system, &before).await).await;
    assert!(is_signed_in(&system, &after).await);
    let renewed = renewed(&before, &refresh(&system, &before.refresh).await.is(200));
    assert!(is_signed_in(&system, &renewed).await);
    assert!(!system.log().contains(secret));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_is_refused_and_swept() {
    let mut system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let session = system.login("ada").await;
    let sql = system.sql().await;
    sql.batch_execute("UPDATE sessions SET expires_at = now() - interval '1 second'").await.unwrap();
    refresh(&system, &session.refresh).await.is_problem(401, "unauthenticated");
    sql.batch_execute(&format!(
        "INSERT INTO sessions (user_id, expires_at, revoked_at, family_hash, refresh_hash)
         SELECT {id}, now() + n * interval '1 day', now() - n * interval '9 hours', '', '' FROM generate_series(1, 4) AS n;
         INSERT INTO sessions (user_id, expires_at, family_hash, refresh_hash)
         SELECT {id}, now() - n * interval '1 ms', '', '' FROM generate_series(1, 2500) AS n;
         INSERT INTO idempotency_keys (user_id, key, request_hash, created_at)
         SELECT {id}, n::text, '', now() - n * interval '1 hour' FROM generate_series(1, 2500) AS n",
        id = ada.id
    ))
    .await
    .unwrap();
    drop(sql);
    system.interrupt();
    system.go().await;
    let sql = system.sql().await;
    let left = "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM idempotency_keys)";
    let is_swept = async |_: &System| {
        let row = sql.query_one(left, &[]).await.unwrap();
        // What was revoked 9 and 18 hours ago, and the keys of the last 24 hours.
        (row.get::<_, i64>(0), row.get::<_, i64>(1)) == (2, 23)
    };
    let swept = tokio::time::timeout(Duration::from_secs(120), system.until("it is swept", is_swept));
    swept.await.unwrap();
}
