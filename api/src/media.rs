//! What is attached to tweets: pictures and films, which lie elsewhere and are named by their addresses.

use axum::http::Uri;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::problem::{Kind, Problem};

/// The most that one tweet has.
pub(crate) const MEDIA_MAX: usize = 4;
/// Characters of an address.
pub(crate) const URL_MAX: usize = 2_048;
/// Characters of a description.
const ALT_MAX: usize = 1_000;

/// Something that is attached to a tweet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = Media)]
pub(crate) struct Media {
    r#type: MediaType,
    /// Where it lies: an address that begins with https.
    #[schema(max_length = 2048, example = "https://media.example.org/1.jpg")]
    url: String,
    /// What it shows, for those who do not see it.
    #[schema(max_length = 1000, example = "A cat on a keyboard")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alt: Option<String>,
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
enum MediaType {
    Image,
    Video,
    Gif,
}

impl Media {
    /// As it is stored.
    pub fn stored(media: &[Media]) -> Option<Value> {
        (!media.is_empty()).then(|| serde_json::to_value(media).ok()).flatten()
    }

    /// Refuses what breaks a rule.
    pub fn check(media: &[Media]) -> Result<(), Problem> {
        let wrong = |rule: String| Err(Kind::InvalidField.because(rule).field("media"));
        if media.len() > MEDIA_MAX {
            return wrong(format!("A tweet has at most {MEDIA_MAX} media."));
        }
        if media.iter().any(|media| !is_https(&media.url)) {
            return wrong(format!("The url of media is one of https, of at most {URL_MAX} characters."));
        }
        let alts = || media.iter().filter_map(|media| media.alt.as_deref());
        if alts().any(|alt| alt.chars().count() > ALT_MAX || alt.contains('\0')) {
            return wrong(format!("The alt of media has at most {ALT_MAX} characters, and no U+0000."));
        }
        Ok(())
    }
}

/// Whether it is an address of the web that nobody else reads on its way.
pub(crate) fn is_https(url: &str) -> bool {
    let names_host = |url: Uri| url.host().is_some_and(|host| !host.is_empty());
    url.len() <= URL_MAX
        && url.starts_with("https://")
        && url.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'@')
        && url.parse::<Uri>().is_ok_and(names_host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_https_and_names_a_host() {
        for good in ["https://a.b/c.jpg", "https://a.b:8443/c?d=e", "https://[::1]/x", "https://a.b"] {
            assert!(is_https(good), "{good}");
        }
        let long = format!("https://a.b/{}", "x".repeat(URL_MAX));
        for bad in
            ["", "https://", "http://a.b/c", "https:///c", "https://a b/c", "javascript:alert(1)", "//a.b/c", &long]
                .into_iter()
                .chain(["HTTPS//a.b", "https://u:p@a.b/c", "https://a.b/\u{0}", "https://a.b/ü", "https://a.b/\n"])
        {
            assert!(!is_https(bad), "{bad}");
        }
    }

    #[test]
    fn none_is_stored_as_none() {
        let media = vec![
            Media { r#type: MediaType::Gif, url: "https://a.b/c.gif".to_owned(), alt: None },
            Media { r#type: MediaType::Image, url: "https://a.b/c.jpg".to_owned(), alt: Some("ü".to_owned()) },
        ];
        Media::check(&media).unwrap();
        let stored =
            r#"[{"type":"gif","url":"https://a.b/c.gif"},{"type":"image","url":"https://a.b/c.jpg","alt":"ü"}]"#;
        assert_eq!(Media::stored(&media).unwrap(), serde_json::from_str::<Value>(stored).unwrap());
        assert_eq!(Media::stored(&[]), None);
    }
}
