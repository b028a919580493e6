//! Registration, login, tokens.

use axum::http::header::AUTHORIZATION;
use serde_json::{Value, json};

use crate::world::{Account, PASSWORD, World, ask, registration, request};

#[tokio::test(flavor = "multi_thread")]
async fn who_registers_is_signed_in_and_can_sign_in_again() {
    let world = World::new("register").await;
    let answer = world
        .post(
            "/api/auth/register",
            None,
            json!({
                "username": "Ada_1", "email": "ada@Example.com", "password": PASSWORD, "displayName": "Ada Lovelace",
            }),
        )
        .await;
    let body = answer.is(201);
    let user = &body["user"];
    assert!(!answer.token().is_empty());
    assert_eq!(user["username"], "Ada_1");
    assert_eq!(user["displayName"], "Ada Lovelace");
    assert_eq!(user["counts"], json!({ "followers": 0, "following": 0, "tweets": 0 }));
    assert_eq!((&user["bio"], &user["avatarUrl"]), (&Value::Null, &Value::Null));
    assert_eq!((&user["verified"], &user["protected"]), (&json!(false), &json!(false)));
    let created = user["createdAt"].as_str().unwrap();
    assert!(created.len() == 27 && created.ends_with('Z'), "{created}");
    assert_eq!(world.count("SELECT count(*) FROM activity WHERE day = (now() AT TIME ZONE 'UTC')::date").await, 1);

    let ada =
        Account { id: user["id"].as_str().unwrap().to_owned(), token: body["token"].as_str().unwrap().to_owned() };
    for seen in [false, true] {
        if seen {
            world.catch_up().await;
        }
        assert_eq!(&world.get("/api/auth/verify", Some(&ada)).await.is(200)["user"], user, "seen by the views: {seen}");
        for name in [json!({ "username": "ADA_1" }), json!({ "email": "ADA@example.COM" })] {
            let mut credentials = name;
            credentials["password"] = json!(PASSWORD);
            let answer = world.post("/api/auth/login", None, credentials).await;
            assert_eq!(&answer.is(200)["user"], user);
            let again = Account { token: answer.body["token"].as_str().unwrap().to_owned(), ..ada.clone() };
            world.get("/api/auth/verify", Some(&again)).await.is(200);
        }
    }
    let hash: String = world.sql.query_one("SELECT password_hash FROM accounts", &[]).await.unwrap().get(0);
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_addresses_are_unique_whatever_their_case() {
    let world = World::new("taken").await;
    world.register("ada").await;
    for (change, field) in [(("email", "else@example.com"), "username"), (("username", "else"), "email")] {
        let mut again = registration("ADA");
        again[change.0] = json!(change.1);
        let answer = world.post("/api/auth/register", None, again).await;
        answer.is_problem(409, "taken");
        assert_eq!(answer.body["field"], field);
    }
    assert_eq!(world.count("SELECT count(*) FROM users").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_breaks_a_rule_names_the_field() {
    let world = World::new("rules").await;
    let long = "x".repeat(300);
    for (field, values) in [
        ("username", &["", "with space", "naïve", "semi;colon", &long[..31]][..]),
        ("email", &["", "nobody", "@example.com", "ada@", "a b@example.com"]),
        ("password", &["", "seven 7", &long[..129], "1234567", "ääääääé"]),
        ("displayName", &["", "   ", "two\nlines", "two\u{2028}lines", "two\u{2029}lines", "nul\0", &long[..51]]),
    ] {
        for value in values {
            let mut registration = registration("ada");
            registration[field] = json!(value);
            let answer = world.post("/api/auth/register", None, registration).await;
            answer.is_problem(422, "invalid-field");
            assert_eq!(answer.body["field"], field, "{value}");
        }
    }
    for change in [json!({ "verified": true }), json!({ "password": 12345678 }), json!({ "email": null })] {
        let mut registration = registration("ada");
        registration.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        world.post("/api/auth/register", None, registration).await.is_problem(422, "invalid-body");
    }
    // The fields in the order of the code are not an object.
    for array in [json!(["ada", "ada@example.com", PASSWORD, "Ada"]), json!([])] {
        world.post("/api/auth/register", None, array).await.is_problem(422, "invalid-body");
    }
    assert_eq!(world.count("SELECT count(*) FROM accounts").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_and_a_wrong_password_have_the_same_answer() {
    let world = World::new("login").await;
    let ada = world.register("ada").await;
    world.register("gone").await;
    world
        .run(
            "UPDATE users SET deleted_at = now() WHERE username = 'gone';
               INSERT INTO accounts (user_id, username) VALUES (1, 'imported');
               INSERT INTO users (id, username, display_name) VALUES (1, 'imported', 'Imported')",
        )
        .await;
    let mut answers = Vec::new();
    for credentials in [
        json!({ "username": "ada", "password": "wrong" }),
        json!({ "username": "ada", "password": "" }),
        json!({ "username": "nobody", "password": PASSWORD }),
        json!({ "username": "", "password": PASSWORD }),
        json!({ "username": "nul\u{0}", "password": PASSWORD }),
        json!({ "username": "' OR 1 = 1 --", "password": PASSWORD }),
        json!({ "email": "ada", "password": PASSWORD }),
        json!({ "username": "imported", "password": "" }),
        json!({ "username": "gone", "password": PASSWORD }),
    ] {
        let answer = world.post("/api/auth/login", None, credentials).await;
        answer.is_problem(401, "invalid-credentials");
        answers.push(answer.text);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    for incomplete in [
        json!({ "password": PASSWORD }),
        json!({ "username": "ada" }),
        json!({ "username": "ada", "email": "ada@example.com", "password": PASSWORD }),
    ] {
        world.post("/api/auth/login", None, incomplete).await.is_problem(422, "invalid-body");
    }
    world.get("/api/auth/verify", Some(&ada)).await.is(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_whole_token_of_a_living_user_passes() {
    let world = World::new("tokens").await;
    let ada = world.register("ada").await;
    world.get("/api/timeline", None).await.is_problem(401, "unauthenticated");
    world.post("/api/tweets", None, json!({ "content": "x" })).await.is_problem(401, "unauthenticated");
    for header in [
        "".to_owned(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        "Bearer null".to_owned(),
        format!("Basic {}", ada.token),
        ada.token.clone(),
        format!("Bearer {}x", ada.token),
        format!("Bearer {}", &ada.token[..ada.token.len() - 1]),
        format!("Bearer {} {}", ada.token, ada.token),
    ] {
        // A token that is no good is refused also where none is needed.
        for path in ["/api/timeline", "/api/users/ada", "/api/tweets/1"] {
            let mut request = request("GET", path, None, None);
            request.headers_mut().insert(AUTHORIZATION, header.parse().unwrap());
            ask(&world.router, request).await.is_problem(401, "unauthenticated");
        }
    }
    let mut lower_case = request("GET", "/api/auth/verify", None, None);
    lower_case.headers_mut().insert(AUTHORIZATION, format!("bearer {}", ada.token).parse().unwrap());
    ask(&world.router, lower_case).await.is(200);

    // Not in the views yet, then deleted, then known to be deleted.
    world.run("UPDATE users SET deleted_at = now()").await;
    world.get("/api/auth/verify", Some(&ada)).await.is_problem(401, "unauthenticated");
    world.catch_up().await;
    for path in ["/api/timeline", "/api/users/ada"] {
        world.get(path, Some(&ada)).await.is_problem(401, "unauthenticated");
    }
    world.post("/api/tweets", Some(&ada), json!({ "content": "x" })).await.is_problem(401, "unauthenticated");
    assert_eq!(world.count("SELECT count(*) FROM tweets").await, 0);
}
