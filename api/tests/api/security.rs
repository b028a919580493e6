//! Tokens, passwords, and whatever else is sent to do harm.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Uri, header};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::world::{Account, PASSWORD, World, ask, registration, request};

/// Whoever asks with this token.
fn with_token(token: String) -> Account {
    Account { id: String::new(), token }
}

/// Header and claims of a token.
fn parts(token: &str) -> (Value, Value) {
    let part = |n: usize| URL_SAFE_NO_PAD.decode(token.split('.').nth(n).unwrap()).unwrap();
    (serde_json::from_slice(&part(0)).unwrap(), serde_json::from_slice(&part(1)).unwrap())
}

/// The first key in the file: its name and its secret.
fn first_key(world: &World) -> (String, Vec<u8>) {
    let text = std::fs::read_to_string(world.key_file()).unwrap();
    let line = text.lines().find(|line| !line.is_empty() && !line.starts_with('#')).unwrap();
    let (name, secret) = line.split_once(' ').unwrap();
    (name.to_owned(), URL_SAFE_NO_PAD.decode(secret.trim()).unwrap())
}

async fn whose(router: &Router, token: String) -> u16 {
    ask(router, request("GET", "/api/auth/verify", Some(&with_token(token)), None)).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn c56_a_token_holds_for_its_algorithm_time_issuer_and_audience_alone() {
    let world = World::new("pinned").await;
    let ada = world.register("ada").await;
    let (_, claims) = parts(&ada.token);
    let (name, secret) = first_key(&world);
    let signed = |algorithm, name: Option<&str>, claims: &Value, secret: &[u8]| {
        let header = Header { kid: name.map(str::to_owned), ..Header::new(algorithm) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret)).unwrap()
    };
    let ours = signed(Algorithm::HS256, Some(&name), &claims, &secret);
    assert_eq!(whose(&world.router, ours.clone()).await, 200, "the test signs as we do");

    // Another algorithm, another key, no name of a key: with everything else as it has to be.
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        assert_eq!(whose(&world.router, signed(algorithm, Some(&name), &claims, &secret)).await, 401, "{algorithm:?}");
    }
    assert_eq!(whose(&world.router, signed(Algorithm::HS256, Some(&name), &claims, &[7; 32])).await, 401);
    assert_eq!(whose(&world.router, signed(Algorithm::HS256, Some("other"), &claims, &secret)).await, 401);
    assert_eq!(whose(&world.router, signed(Algorithm::HS256, None, &claims, &secret)).await, 401);
    let (_, rest) = ours.split_once('.').unwrap();
    for algorithm in ["none", "None", "nOnE", "RS256", "ES256", "HS256 ", ""] {
        let header = json!({ "alg": algorithm, "typ": "JWT", "kid": name }).to_string();
        let header = URL_SAFE_NO_PAD.encode(header);
        let unsigned = format!("{header}.{}.", rest.split_once('.').unwrap().0);
        assert_eq!(whose(&world.router, unsigned).await, 401, "{algorithm}");
        assert_eq!(whose(&world.router, format!("{header}.{rest}")).await, 401, "{algorithm}");
    }

    // Other claims, signed by the right key.
    for (claim, value) in [
        ("exp", json!(claims["iat"].as_u64().unwrap() - 3_600)),
        ("exp", json!("never")),
        ("iss", json!("someone")),
        ("aud", json!("another-api")),
        ("sub", json!("root")),
    ] {
        let mut changed = claims.clone();
        changed[claim] = value.clone();
        let token = signed(Algorithm::HS256, Some(&name), &changed, &secret);
        assert_eq!(whose(&world.router, token).await, 401, "{claim} is {value}");
    }
    for claim in ["exp", "iss", "aud", "sub"] {
        let mut changed = claims.clone();
        changed.as_object_mut().unwrap().remove(claim);
        let token = signed(Algorithm::HS256, Some(&name), &changed, &secret);
        assert_eq!(whose(&world.router, token).await, 401, "without {claim}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c56_keys_rotate_without_signing_anybody_out() {
    let world = World::new("rotation").await;
    let before = world.register("ada").await;
    let (old, _) = first_key(&world);
    let path = world.key_file();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("newer {}\n{text}", URL_SAFE_NO_PAD.encode([9; 32]))).unwrap();
    let rotated = world.instance(|_| {});
    assert_eq!(whose(&rotated, before.token.clone()).await, 200, "the old key verifies");
    let body = json!({ "username": "ada", "password": PASSWORD });
    let after = ask(&rotated, request("POST", "/api/auth/login", None, Some(body))).await;
    let after = after.is(200)["token"].as_str().unwrap().to_owned();
    assert_eq!((&parts(&before.token).0["kid"], &parts(&after).0["kid"]), (&json!(old), &json!("newer")));
    assert_eq!(whose(&rotated, after.clone()).await, 200);
    // Once the old key is gone its tokens are too.
    std::fs::write(&path, format!("newer {}\n", URL_SAFE_NO_PAD.encode([9; 32]))).unwrap();
    let retired = world.instance(|_| {});
    assert_eq!((whose(&retired, after).await, whose(&retired, before.token).await), (200, 401));
}

#[tokio::test(flavor = "multi_thread")]
async fn c56_passwords_are_kept_as_argon2id_of_19_mib_and_two_passes() {
    let world = World::new("argon").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    let rows = world.sql.query("SELECT user_id::text, password_hash FROM accounts", &[]).await.unwrap();
    let mut hashes: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    hashes.sort();
    assert_eq!(hashes.iter().map(|(user, _)| user).collect::<Vec<_>>(), [&ada.id, &ben.id]);
    for (_, hash) in &hashes {
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    }
    assert_ne!(hashes[0].1, hashes[1].1, "the same password, salted");
}

/// What a path parameter, by its name, must not be.
fn bad_segments(name: &str) -> Vec<String> {
    let id = name.to_lowercase().ends_with("id");
    let always = ["%00", "%ff", "%f0%9f", "..%2f..", "%2e%2e"].map(str::to_owned);
    let of_ids = ["abc", "1.5", "-", "+1", "007", "0x10", "1e3", "%201", "9223372036854775808", "-9223372036854775809"];
    let mut bad = always.to_vec();
    if id {
        bad.extend(of_ids.map(str::to_owned));
    }
    bad.push("9".repeat(4_000));
    bad
}

/// What a parameter of the query must not be, or may be and must do no harm.
const BAD_VALUES: [&str; 22] = [
    "",
    "0",
    "-1",
    "101",
    "1.5",
    "abc",
    "null",
    "true,false",
    "999999999999999999999",
    "%00",
    "%ff",
    "%",
    "%zz",
    "%F0%9F%92%A9",
    "AAAA",
    "AW__",
    "Zm9vYmFy",
    "..%2F..%2Fetc%2Fpasswd",
    "%27%20OR%201%3D1%20--",
    "%22%20OR%20%22",
    "((((((((((",
    "%E2%80%AE%E2%80%8D",
];

/// Bodies that nothing can be done with.
fn bad_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let json = "application/json";
    let deep = |open: &str, close: &str| [open.repeat(20_000), close.repeat(20_000)].concat().into_bytes();
    vec![
        (json, Vec::new()),
        (json, b"{".to_vec()),
        (json, b"[]".to_vec()),
        (json, b"null".to_vec()),
        (json, b"\"text\"".to_vec()),
        (json, b"{\"no such member\": 1}".to_vec()),
        (json, vec![0xFF, 0xFE, 0x00]),
        (json, b"{\"content\": \"\\ud800\"}".to_vec()),
        (json, deep("[", "]")),
        (json, deep("{\"a\":", "}")),
        (json, vec![b' '; 70_000]),
        (json, format!("{{\"content\": \"{}\"}}", "x".repeat(70_000)).into_bytes()),
        ("text/plain", b"{}".to_vec()),
        ("application/x-www-form-urlencoded", b"content=x".to_vec()),
        ("multipart/form-data; boundary=x", b"--x--".to_vec()),
    ]
}

/// A value of each form in the place of each member of a body.
fn wrong_members(schema: &Value) -> Vec<Value> {
    let Some(members) = schema["properties"].as_object() else { return Vec::new() };
    let wrong = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1.5e300),
        json!([]),
        json!({}),
        json!(""),
        json!("\u{0}"),
        json!("\u{202e}\u{200d}"),
        json!("x".repeat(20_000)),
        json!(["x", 1, null]),
    ];
    let of_name = |name: &str| {
        members.keys().map(|other| (other.clone(), json!("x"))).filter(|(other, _)| other != name).collect()
    };
    let mut bodies = Vec::new();
    for name in members.keys() {
        for value in &wrong {
            let mut body: serde_json::Map<String, Value> = of_name(name);
            body.insert(name.clone(), value.clone());
            bodies.push(Value::Object(body));
        }
    }
    bodies
}

struct Sent {
    method: String,
    uri: String,
    content: Option<(String, Vec<u8>)>,
    /// Whether no answer but a refusal is right.
    refused: bool,
}

/// Every operation of the document with whatever may be wrong with a request to it.
fn malformed(document: &Value) -> Vec<Sent> {
    let mut all = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        // What it answers has no end.
        if path == "/api/stream" {
            continue;
        }
        for (method, operation) in operations.as_object().unwrap() {
            let method = method.to_uppercase();
            let none = Vec::new();
            let parameters = operation["parameters"].as_array().unwrap_or(&none);
            let named = |place: &str| -> Vec<String> {
                let of_place = parameters.iter().filter(|one| one["in"] == place);
                of_place.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
            };
            let filled = |name: &str, value: &str| {
                named("path").iter().fold(path.clone(), |path, other| {
                    path.replace(&format!("{{{other}}}"), if other == name { value } else { "1" })
                })
            };
            let mut send = |uri: String, content: Option<(String, Vec<u8>)>, refused: bool| {
                all.push(Sent { method: method.clone(), uri, content, refused });
            };
            for name in named("path") {
                for bad in bad_segments(&name) {
                    let refused = name.to_lowercase().ends_with("id");
                    send(filled(&name, &bad), None, refused);
                }
            }
            for name in named("query") {
                for bad in BAD_VALUES.iter().copied().chain([&*"x".repeat(4_000)]) {
                    let is_number = bad.parse::<u32>().is_ok_and(|number| (1..=100).contains(&number));
                    let refused = match name.as_str() {
                        "limit" => !is_number,
                        "cursor" => !bad.is_empty(),
                        _ => false,
                    };
                    send(format!("{}?{name}={bad}", filled("", "")), None, refused);
                    send(format!("{}?{name}={bad}&{name}={bad}", filled("", "")), None, false);
                }
            }
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            if !body.is_null() {
                for (kind, bytes) in bad_bodies() {
                    send(filled("", ""), Some((kind.to_owned(), bytes)), true);
                }
                let schema = match body["$ref"].as_str() {
                    Some(name) => &document["components"]["schemas"][name.rsplit('/').next().unwrap()],
                    None => body,
                };
                for bytes in wrong_members(schema) {
                    let bytes = bytes.to_string().into_bytes();
                    send(filled("", ""), Some(("application/json".to_owned(), bytes)), false);
                }
            }
            send(format!("{}?{}", filled("", ""), "x".repeat(9_000)), None, true);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn c58_whatever_is_malformed_is_refused_by_every_operation() {
    let world = World::new("malformed").await;
    // One signs out, or deletes the account, by what is not malformed for that.
    let mut ada = world.register("ada").await;
    world.register("ben").await;
    world.catch_up().await;
    let document = world.get("/openapi.json", None).await;
    let document = document.is(200);
    let all = malformed(document);
    assert!(all.len() > 300 && all.iter().filter(|sent| sent.refused).count() > 150, "{}", all.len());
    let mut again = 0;
    for Sent { method, uri, content, refused } in all {
        // What HTTP itself cannot carry does not come as far as the API.
        let Ok(parsed) = uri.parse::<Uri>() else { continue };
        let mut asked = Request::builder().method(&*method).uri(parsed);
        asked = asked.header(header::AUTHORIZATION, format!("Bearer {}", ada.token));
        let body = match content.clone() {
            Some((kind, bytes)) => {
                asked = asked.header(header::CONTENT_TYPE, kind);
                Body::from(bytes)
            }
            None => Body::empty(),
        };
        let answer = ask(&world.router, asked.body(body).unwrap()).await;
        let shown =
            content.map(|(kind, bytes)| (kind, String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned()));
        let told = format!("{method} {uri:.120} {shown:?}: {} {:.300}", answer.status, answer.text);
        assert!(answer.status < 500, "{told}");
        assert!(!refused || (400..500).contains(&answer.status), "{told}");
        if answer.status < 300 && method != "GET" || answer.status == 401 {
            // The session may be over by that.
            again += 1;
            let fresh = world.post("/api/auth/register", None, registration(&format!("ada{again}"))).await;
            ada = with_token(fresh.is(201)["token"].as_str().unwrap().to_owned());
        }
    }
}
