//! A client sees what it wrote, also when it knows nothing of consistency tokens.

use serde_json::json;

use crate::reads::{is_problem, people};
use crate::system::{System, ids};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reads_its_own_writes_without_a_token() {
    let system = System::start(&["--workers", "2"]).await;
    let [ada, ben] = people(&system, ["ada", "ben"]).await;
    // Who was registered a moment ago is there.
    assert_eq!(system.get("/api/users/ben", Some(&ben)).await.status, 200);
    for round in 0..30 {
        let (tweet, _) = system.tweet(&ada, &format!("{round} #round")).await;
        let paths =
            ["/api/timeline?limit=1", "/api/users/ada/tweets?limit=1", "/api/timeline/search/hashtag/round?limit=1"];
        assert_eq!(ids(&system.get(paths[round % 3], Some(&ada)).await.body), [&*tweet], "{}", paths[round % 3]);
        let follow = system.post(&format!("/api/follows/{}", ada.id), Some(&ben), json!({})).await;
        assert!(follow.token.is_some(), "{follow:?}");
        assert_eq!(system.get("/api/users/ada", Some(&ben)).await.body["following"], true, "{round}");
        assert_eq!(ids(&system.get("/api/timeline?limit=1", Some(&ben)).await.body), [&*tweet], "{round}");
        system.delete(&format!("/api/follows/{}", ada.id), Some(&ben)).await;
        assert_eq!(system.get("/api/users/ada", Some(&ben)).await.body["following"], false, "{round}");
        assert_eq!(ids(&system.get("/api/timeline?limit=1", Some(&ben)).await.body), [""; 0], "{round}");
    }
    // Search too, which is the last to know.
    let (tweet, _) = system.tweet(&ada, "unheard of").await;
    system
        .until("search has it", async |system| {
            let found = system.get("/api/search?q=unheard", Some(&ada)).await;
            // An answer that is older, because it was not to wait longer, says so.
            let is_told = found.headers.contains_key("x-feedmill-not-yet-visible");
            assert!(is_told || ids(&found.body) == [&*tweet], "{found:?}");
            !is_told
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_carries_its_position_in_a_cookie() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let post = async |content: &str, proto: &str| {
        let request = system.http.post(format!("{}/api/tweets", system.url)).bearer_auth(&ada.token);
        let request = request.header("X-Forwarded-Proto", proto).json(&json!({ "content": content }));
        let answer = request.send().await.unwrap();
        let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
        let body: serde_json::Value = answer.json().await.unwrap();
        (body["id"].as_str().unwrap().to_owned(), cookie)
    };
    let read = async |cookie: &str| {
        let request = system.http.get(format!("{}/api/users/ada/tweets?limit=1", system.url));
        let answer = request.header("Cookie", cookie).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{cookie}");
        ids(&answer.json().await.unwrap())
    };
    for round in 0..20 {
        let (tweet, cookie) = post(&round.to_string(), "http").await;
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/api; Max-Age=30; HttpOnly; SameSite=Lax");
        assert_eq!(read(&format!("theme=dark; {pair}")).await, [tweet]);
    }
    let (tweet, cookie) = post("over TLS", "https").await;
    assert!(cookie.ends_with("; SameSite=Lax; Secure"), "{cookie}");
    system
        .until("it is there", async |system| ids(&system.get("/api/timeline", Some(&ada)).await.body)[0] == tweet)
        .await;
    for garbage in ["feedmill-consistency=garbage", "feedmill-consistency", "=", &cookie.replace('.', "")] {
        assert_eq!(read(garbage).await, [&*tweet]);
    }
    // A header is a question, and is answered.
    let asked = system.get_after("garbage", "/api/users/ada/tweets", Some(&ada)).await;
    is_problem(&asked, 400, "invalid-consistency-token");
    // The cookie says where somebody's write lies, and not who that is.
    let pair = cookie.split(';').next().unwrap();
    let home = system.http.get(format!("{}/api/timeline", system.url)).header("Cookie", pair).send().await.unwrap();
    assert_eq!(home.status(), 401);
}
