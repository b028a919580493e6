//! What clients are sent.

use serde::Serialize;

use super::End;
use crate::answer::IdText;

/// One event, as both transports carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    name: &'static str,
    /// Where a client goes on that has this event.
    id: Option<String>,
    /// JSON, on one line.
    data: String,
}

impl Event {
    pub(super) fn new(name: &'static str, id: Option<String>, data: &impl Serialize) -> Self {
        metrics::counter!("feedmill_stream_events_total", "event" => name).increment(1);
        // What is sent are structs of ours, which serialize.
        Event { name, id, data: serde_json::to_string(data).unwrap_or_default() }
    }

    /// As a server-sent event.
    pub(super) fn write_sse(&self, to: &mut String) {
        let mut line = |parts: &[&str]| {
            parts.iter().for_each(|part| to.push_str(part));
            to.push('\n');
        };
        line(&["event: ", self.name]);
        if let Some(id) = &self.id {
            line(&["id: ", id]);
        }
        line(&["data: ", &self.data]);
        line(&[]);
    }

    /// As the text of a WebSocket message.
    pub(super) fn message(&self) -> String {
        let id = self.id.as_ref().map(|id| format!("\"id\":\"{id}\",")).unwrap_or_default();
        format!("{{\"event\":\"{}\",{id}\"data\":{}}}", self.name, self.data)
    }
}

/// The stream has begun.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Open {
    /// After how much silence at most something is sent.
    pub heartbeat_ms: u64,
}

/// What is to be loaded anew.
#[derive(Serialize)]
pub(super) struct Reset {
    pub of: &'static str,
}

/// Counts of a tweet on screen.
#[derive(Serialize)]
pub(super) struct CountsBody {
    pub id: IdText,
    pub likes: i64,
    pub retweets: i64,
    pub replies: i64,
}

/// Counts that have changed.
#[derive(Serialize)]
pub(super) struct Counts {
    pub tweets: Vec<CountsBody>,
}

/// Tweets on screen that are not there any more, or not for this viewer.
#[derive(Serialize)]
pub(super) struct Gone {
    pub tweets: Vec<IdText>,
}

/// The last word.
#[derive(Serialize)]
struct Closed {
    reason: &'static str,
    detail: &'static str,
}

/// The last word of a stream that ends so.
pub(super) fn closed(end: End) -> Event {
    Event::new("closed", None, &Closed { reason: end.name(), detail: end.advice() })
}

/// Counts a stream that has ended.
pub(super) fn ended(end: End) {
    metrics::counter!("feedmill_stream_closed_total", "reason" => end.name()).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_in_both_transports() {
        let event = Event::new("reset", Some("AQ".to_owned()), &Reset { of: "time\nline" });
        let mut text = String::new();
        event.write_sse(&mut text);
        assert_eq!(text, "event: reset\nid: AQ\ndata: {\"of\":\"time\\nline\"}\n\n");
        let message: serde_json::Value = serde_json::from_str(&event.message()).unwrap();
        assert_eq!(message, serde_json::json!({ "event": "reset", "id": "AQ", "data": { "of": "time\nline" } }));
        let event = Event::new("gone", None, &Gone { tweets: vec![IdText(7)] });
        assert_eq!(event.message(), "{\"event\":\"gone\",\"data\":{\"tweets\":[\"7\"]}}");
    }
}
