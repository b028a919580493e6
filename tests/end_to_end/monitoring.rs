//! What operators look at: dashboard, alert rules, access log, traces.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::system::{System, binary};

/// Names of our metrics in an expression, without what Prometheus adds to those of a histogram.
fn names(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("feedmill_")).collect()
}

/// All expressions in the dashboard and the alert rules.
fn expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(include_str!("../../docs/grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let mut all: Vec<String> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let rules = include_str!("../../docs/alerts.yml");
    all.extend(rules.lines().filter_map(|line| Some(line.trim().strip_prefix("expr: ")?.to_owned())));
    assert!(all.len() > 30 && all.iter().all(|expression| !names(expression).is_empty()), "{all:?}");
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_and_every_alert_has_data() {
    let primary = Postgres::new(&[]).await;
    let standby = primary.standby().await;
    let replica = standby.url();
    let settings = ["--save-seconds", "1", "--limit-read-user", "100000", "--replica-url", &replica];
    let mut system = System::new(&settings);
    system.use_database(&primary);
    system.go().await;
    let ada = system.register("ada").await;
    let (tweet, token) = system.tweet(&ada, "hello").await;
    assert_eq!(system.home(&ada, Some(&token)).await, [tweet]);
    let wanted = expressions();
    let wanted: BTreeSet<&str> = wanted.iter().flat_map(|expression| names(expression)).collect();
    let mut missing = Vec::new();
    system
        .until("each metric of a panel or an alert has data", async |system| {
            let text = system.http.get(format!("{}/metrics", system.url)).send().await.unwrap().text().await.unwrap();
            let told: BTreeSet<&str> = text.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
            let now: Vec<String> =
                wanted.iter().filter(|name| !told.contains(*name)).map(ToString::to_string).collect();
            if now != missing {
                eprintln!("not there yet: {now:?}");
            }
            missing = now;
            missing.is_empty()
        })
        .await;
}

#[test]
fn every_setting_is_in_the_manual() {
    let output = Command::new(binary()).args(["up", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let flags: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim().split(['<', '[', ' ', ',']).find(|word| word.starts_with("--")))
        .filter(|flag| !["--help", "--version"].contains(flag))
        .collect();
    assert!(flags.len() > 40, "{flags:?}");
    let manual = include_str!("../../docs/operations.md");
    let missing: Vec<&&str> = flags.iter().filter(|flag| !manual.contains(**flag)).collect();
    assert!(missing.is_empty(), "docs/operations.md does not tell of {missing:?}");
}

#[test]
fn the_alert_rules_are_rules() {
    let Ok(output) = Command::new("promtool").args(["check", "rules", "docs/alerts.yml"]).output() else {
        eprintln!("skipped: promtool is not on this machine (Debian's package prometheus has it)");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_has_a_line_of_json_a_request() {
    let mut system = System::new(&[]);
    let file = system.data().join("access.log");
    system.settings = ["--access-log", file.to_str().unwrap()].map(str::to_owned).into();
    system.go().await;
    let ada = system.register("ada").await;
    let request = system.http.get(format!("{}/api/users/ada?token=secret", system.url));
    let request = request.bearer_auth(&ada.token).header("x-request-id", "mine-17");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let mut line = Value::Null;
    system
        .until("the request is in the log", async |_| {
            let text = fs::read_to_string(&file).unwrap();
            line = text
                .lines()
                .find(|line| line.contains("mine-17"))
                .map_or(Value::Null, |line| serde_json::from_str(line).unwrap());
            line.is_object()
        })
        .await;
    let expected = json!({
        "method": "GET", "path": "/api/users/ada", "route": "/api/users/{username}", "status": 200,
        "address": "127.0.0.1", "request_id": "mine-17",
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&line[name], value, "{line}");
    }
    assert!(line["timestamp"].is_string() && line["took_us"].as_u64() > Some(0), "{line}");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|line| line["status"].is_u64())));
    assert!(!text.contains("secret") && !text.contains(&ada.token), "{text}");
    // It is apart from the log.
    assert!(!system.log().contains("mine-17"));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_traced_as_a_part_of_the_trace_of_a_trusted_proxy() {
    let received: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let collector = Router::new()
        .route(
            "/v1/traces",
            post(async |State(received): State<Arc<Mutex<Vec<Bytes>>>>, body: Bytes| {
                received.lock().push(body);
            }),
        )
        .with_state(Arc::clone(&received));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, collector).await });
    let trace: [u8; 16] = *b"\x4b\xf9\x2f\x35\x77\xb3\x4d\xa6\xa3\xce\x92\x9d\x0e\x0e\x47\x36";
    let hex: String = trace.iter().map(|byte| format!("{byte:02x}")).collect();
    let traced = async |system: &System| {
        let ada = system.register("ada").await;
        let post = system.http.post(format!("{}/api/tweets", system.url)).json(&json!({ "content": "traced" }));
        let post = post.bearer_auth(&ada.token).header("traceparent", format!("00-{hex}-00f067aa0ba902b7-01"));
        assert_eq!(post.send().await.unwrap().status(), 201);
        ada
    };
    // Not anybody may choose to be traced. At its end, all that it had has come.
    let settings = ["--otlp-endpoint", &endpoint, "--otlp-sample", "0"];
    let mut system = System::start(&settings).await;
    traced(&system).await;
    system.interrupt();
    assert!(received.lock().is_empty());

    // What is not asked for by a proxy is not sampled.
    let mut system = System::start(&[&settings[..], &["--trusted-proxies", "127.0.0.1/32"]].concat()).await;
    let ada = traced(&system).await;
    let has = |part: &[u8]| received.lock().iter().any(|body| body.windows(part.len()).any(|window| window == part));
    system.until("the trace has come", async |_| has(&trace)).await;
    system.interrupt();
    assert!(!has(b"/api/auth/register") && !has(ada.token.as_bytes()) && !has(b"traced\""));
    serving.abort();
}
