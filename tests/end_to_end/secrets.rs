//! What must not be told to anybody who reads logs, answers, metrics or the list of processes.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::system::System;

const DATABASE_PASSWORD: &str = "Dtabase-s3cret-7";
const REPLICA_PASSWORD: &str = "Replica-s3cret-8";
const USER_PASSWORD: &str = "User-s3cret-9-horse";
const WRONG_PASSWORD: &str = "Wrong-s3cret-10-horse";
const NEW_PASSWORD: &str = "Newer-s3cret-11-horse";
const PASSWORD_AS_NUMBER: u64 = 918_273_645_546;

/// The command lines of a process and of all that it has started, and they have.
fn command_lines(first: Pid) -> Vec<String> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
        parents.insert(pid, parent.unwrap_or(0));
    }
    let descends = |mut pid: i32| {
        while pid > 1 {
            if pid == first.as_raw() {
                return true;
            }
            pid = parents.get(&pid).copied().unwrap_or(0);
        }
        false
    };
    let lines = parents.keys().filter(|pid| descends(**pid));
    lines.map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn c60_no_secret_is_in_logs_answers_metrics_settings_or_the_list_of_processes() {
    let mut postgres = Postgres::new(&[]).await;
    let superuser = postgres.superuser("postgres").await;
    superuser
        .batch_execute(&format!(
            "ALTER ROLE feedmill PASSWORD '{DATABASE_PASSWORD}';
             CREATE ROLE reader LOGIN PASSWORD '{REPLICA_PASSWORD}' IN ROLE pg_read_all_data"
        ))
        .await
        .unwrap();
    drop(superuser);
    postgres.authenticate(&["local all feedmill trust", "host all all 127.0.0.1/32 scram-sha-256"]);
    postgres.reload();
    let mut system = System::new(&[]);
    let access = system.data().join("access.log");
    // One by the file, the other by the environment.
    let replica = postgres.url_at(&format!("reader:{REPLICA_PASSWORD}"), "127.0.0.1", postgres.port, "feedmill");
    let file = system.data().join("settings.toml");
    fs::write(&file, format!("replica_url = \"{replica}\"\naccess_log = \"{}\"\n", access.display())).unwrap();
    // What asks for one library by its name does not get it either.
    let log = "trace,tokio_postgres=trace,tokio_postgres::query=trace,axum::rejection=trace,h2::codec=trace";
    system.settings = ["--log", log, "--config", file.to_str().unwrap()].map(str::to_owned).into();
    let role = format!("feedmill:{DATABASE_PASSWORD}");
    system.database_url = Some(postgres.url_at(&role, "127.0.0.1", postgres.port, "feedmill"));
    system.go().await;

    let mut secrets: Vec<String> =
        [DATABASE_PASSWORD, REPLICA_PASSWORD, USER_PASSWORD, WRONG_PASSWORD, NEW_PASSWORD].map(str::to_owned).into();
    secrets.push(PASSWORD_AS_NUMBER.to_string());
    let keys = fs::read_to_string(system.data().join("keys")).unwrap();
    secrets
        .extend(keys.lines().filter_map(|line| Some(line.split_once(' ')?.1.to_owned())).filter(|key| key.len() > 30));
    let mut answers = Vec::new();
    let mut ask =
        async |system: &System, method: &str, path: &str, token: Option<&str>, body: Option<String>| -> Value {
            let method: reqwest::Method = method.parse().unwrap();
            let mut request = system.http.request(method, format!("{}{path}", system.url));
            if let Some(token) = token {
                request = request.bearer_auth(token).header("Cookie", format!("session={token}"));
            }
            if let Some(body) = body {
                request = request.header("Content-Type", "application/json").body(body);
            }
            let answer = request.send().await.unwrap();
            let (status, head) = (answer.status().as_u16(), format!("{:?}", answer.headers()));
            let text = answer.text().await.unwrap();
            // What is given to its owner on purpose is not told to others.
            if status >= 400 {
                let path = path.split('?').next().unwrap();
                answers.push(format!("{status} {path} {head} {text}"));
            }
            serde_json::from_str(&text).unwrap_or(Value::Null)
        };
    let registration = |name: &str, password: Value| {
        let email = format!("{name}@example.com");
        Some(json!({ "username": name, "email": email, "password": password, "displayName": name }).to_string())
    };
    let credentials = |name: &str, password: Value| Some(json!({ "username": name, "password": password }).to_string());

    // What goes well.
    let ada = ask(&system, "POST", "/api/auth/register", None, registration("ada", json!(USER_PASSWORD))).await;
    let mut tokens = vec![ada["token"].as_str().unwrap().to_owned()];
    let login = ask(&system, "POST", "/api/auth/login", None, credentials("ada", json!(USER_PASSWORD))).await;
    tokens.push(login["token"].as_str().unwrap().to_owned());
    tokens.extend([&ada, &login].iter().filter_map(|answer| answer["refreshToken"].as_str().map(str::to_owned)));
    let token = tokens[1].clone();
    for path in ["/api/timeline", "/api/auth/verify", "/api/users/ada", "/api/users/me/export"] {
        ask(&system, "GET", path, Some(&token), None).await;
    }
    ask(&system, "POST", "/api/tweets", Some(&token), Some(json!({ "content": "hello" }).to_string())).await;
    let change = json!({ "currentPassword": USER_PASSWORD, "newPassword": NEW_PASSWORD }).to_string();
    for (method, path) in [("POST", "/api/auth/password"), ("PUT", "/api/users/me/password")] {
        ask(&system, method, path, Some(&token), Some(change.clone())).await;
    }

    // What does not: wrong, malformed, of a wrong type, twice, too long, in the wrong place.
    for body in [
        credentials("ada", json!(WRONG_PASSWORD)),
        credentials("ada", json!(PASSWORD_AS_NUMBER)),
        credentials("ada", json!([WRONG_PASSWORD])),
        credentials("ada", json!({ (WRONG_PASSWORD): 1 })),
        Some(format!(
            "{{\"username\": \"ada\", \"password\": \"{WRONG_PASSWORD}\", \"password\": \"{USER_PASSWORD}\"}}"
        )),
        Some(format!("{{\"username\": \"ada\", \"password\": \"{WRONG_PASSWORD}")),
        Some(format!("{{\"username\": \"ada\", \"password\": \"{WRONG_PASSWORD}\", \"other\": 1}}")),
    ] {
        ask(&system, "POST", "/api/auth/login", None, body).await;
    }
    ask(&system, "POST", "/api/auth/register", None, registration("ada", json!(USER_PASSWORD))).await;
    ask(&system, "POST", "/api/auth/register", None, registration("not a name", json!(WRONG_PASSWORD))).await;
    ask(&system, "POST", "/api/auth/register", None, registration("ben", json!(WRONG_PASSWORD.repeat(20)))).await;
    ask(&system, "POST", "/api/auth/register", None, registration("nul\u{0}", json!(WRONG_PASSWORD))).await;
    for altered in [format!("{token}x"), token[..token.len() - 2].to_owned(), token.replace('.', ":")] {
        ask(&system, "GET", "/api/timeline", Some(&altered), None).await;
        tokens.push(altered);
    }
    let query = format!("/api/timeline?access_token={token}&password={WRONG_PASSWORD}");
    ask(&system, "GET", &query, None, None).await;
    let query = format!("/api/timeline?limit={WRONG_PASSWORD}");
    ask(&system, "GET", &query, Some(&token), None).await;
    let hashes = postgres.superuser("feedmill").await;
    let hashes = hashes.query("SELECT password_hash FROM accounts WHERE password_hash IS NOT NULL", &[]).await.unwrap();
    secrets.extend(hashes.iter().map(|row| row.get::<_, String>(0)));
    let metrics = system.http.get(format!("{}/metrics", system.url)).send().await.unwrap().text().await.unwrap();
    let mut lines = command_lines(system.pid());
    for command in [&["config"][..], &["validate"], &["status"]] {
        let output = system.command(&[command, &["--config", file.to_str().unwrap()]].concat()).await;
        lines.push(String::from_utf8_lossy(&output.stdout).into_owned());
        lines.push(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    assert!(lines.iter().any(|line| line.contains("replica_url")), "{lines:?}");

    // The database goes away, and then takes no password that is known here.
    postgres.stop_immediate();
    ask(&system, "POST", "/api/auth/login", None, credentials("ada", json!(USER_PASSWORD))).await;
    ask(&system, "POST", "/api/tweets", Some(&token), Some(json!({ "content": "x" }).to_string())).await;
    postgres.start().await;
    let superuser = postgres.superuser("postgres").await;
    superuser
        .batch_execute("ALTER ROLE feedmill PASSWORD 'another'; ALTER ROLE reader PASSWORD 'another'")
        .await
        .unwrap();
    system
        .until("the password is refused", async |system| {
            let _ = superuser
                .batch_execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'feedmill-%'",
                )
                .await;
            system.log().contains("password authentication failed")
        })
        .await;
    ask(&system, "POST", "/api/auth/login", None, credentials("ada", json!(USER_PASSWORD))).await;
    system.interrupt();

    assert!(answers.len() > 12, "{answers:?}");
    let log = system.log();
    let access = fs::read_to_string(&access).unwrap();
    assert!(log.contains("TRACE"), "everything is logged that can be");
    let first = access.lines().next().unwrap_or_else(|| panic!("the access log is empty"));
    let first: Value = serde_json::from_str(first).unwrap();
    assert!(first["route"].is_string() && first["status"].is_number() && first["request_id"].is_string(), "{first}");
    // A token is a secret as a whole, and so is what signs it.
    secrets.extend(tokens.iter().filter_map(|token| Some(token.rsplit_once('.')?.1.to_owned())));
    for secret in &secrets {
        let shown = |text: &str| {
            text.lines().filter(|line| line.contains(secret.as_str())).take(3).map(str::to_owned).collect::<Vec<_>>()
        };
        for (what, text) in [("log", &log), ("access log", &access), ("metrics", &metrics)] {
            assert!(!text.contains(secret.as_str()), "{secret} is in the {what}: {:#?}", shown(text));
        }
        for text in answers.iter().chain(&lines) {
            assert!(!text.contains(secret.as_str()), "{secret} is told: {text}");
        }
    }
}
