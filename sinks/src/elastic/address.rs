//! Where the server is, and who we are there.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use elasticsearch::http::Url;

/// The prefix of all names, unless the address has one.
const PREFIX: &str = "feedmill";
const PREFIX_CHARS_MAX: usize = 64;

/// The address of a server: `http(s)://[user:password@]host:port[/prefix]`. Printed without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct ElasticAddress {
    /// Without user and password.
    pub(super) url: Url,
    pub(super) user: Option<(String, String)>,
    pub(super) prefix: String,
}

/// A text that is no such address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; an address of Elasticsearch is http(s)://[user:password@]host:port[/prefix], where the prefix begins the names of \
     all indices and is made of a-z, 0-9, - and _, and begins with a letter"
)]
pub struct ParseAddressError(String);

impl FromStr for ElasticAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // What is wrong is told without the text: it may have a password.
        let refused = |what: &str| ParseAddressError(what.to_owned());
        let mut url: Url = text.parse().map_err(|error| ParseAddressError(format!("it is no URL ({error})")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused("it begins with neither http:// nor https://"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(refused("it names no host"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("it goes on after the prefix"));
        }
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = match (decoded(url.username()), url.password().map(decoded)) {
            (user, Some(password)) if !user.is_empty() => Some((user, password)),
            (user, None) if user.is_empty() => None,
            _ => return Err(refused("it has a user or a password, but not both")),
        };
        let path = url.path().trim_matches('/').to_owned();
        let prefix = if path.is_empty() { PREFIX.to_owned() } else { path };
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if !prefix.starts_with(|c: char| c.is_ascii_lowercase())
            || !prefix.chars().all(allowed)
            || prefix.len() > PREFIX_CHARS_MAX
        {
            return Err(refused("its prefix cannot begin the name of an index"));
        }
        url.set_path("/");
        // They refuse only URLs without a host.
        let _ = (url.set_username(""), url.set_password(None));
        Ok(ElasticAddress { url, user, prefix })
    }
}

impl ElasticAddress {
    /// What the names of everything on the server begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether it has a password.
    pub fn has_password(&self) -> bool {
        self.user.is_some()
    }
}

impl fmt::Display for ElasticAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.url, self.prefix)
    }
}

impl fmt::Debug for ElasticAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A search index on a server.
#[derive(Clone)]
pub struct ElasticSettings {
    /// Where.
    pub address: ElasticAddress,
    /// A key (encoded, as the server gives it) instead of user and password.
    pub api_key: Option<String>,
    /// A file (PEM) of authorities that sign the server's certificate, beside those that all know.
    pub authority: Option<PathBuf>,
    /// Documents and bytes of one request.
    pub bulk_documents: usize,
    /// See [`Self::bulk_documents`].
    pub bulk_bytes: usize,
    /// Tombstones go when all shards are so far beyond them.
    pub sweep_after: Duration,
    /// Operations that wait in memory, and bytes that wait on disk; whoever brings more waits.
    pub queued_operations: usize,
    /// See [`Self::queued_operations`].
    pub queued_bytes: u64,
}

impl ElasticSettings {
    /// At `address`, and else what serves most.
    pub fn new(address: ElasticAddress) -> Self {
        ElasticSettings {
            address,
            api_key: None,
            authority: None,
            bulk_documents: 1_000,
            bulk_bytes: 4 << 20,
            sweep_after: Duration::from_secs(3_600),
            queued_operations: 20_000,
            queued_bytes: 4 << 30,
        }
    }
}

impl fmt::Debug for ElasticSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElasticSettings")
            .field("address", &self.address)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_printed_without_its_password() {
        let address: ElasticAddress = "https://ada:p%40ss@search.example:9243/feeds".parse().unwrap();
        assert_eq!(address.user, Some(("ada".to_owned(), "p@ss".to_owned())));
        assert_eq!((address.prefix.as_str(), address.has_password()), ("feeds", true));
        let settings = ElasticSettings { api_key: Some("s3cret".into()), ..ElasticSettings::new(address.clone()) };
        for shown in [format!("{address}"), format!("{address:?}"), format!("{settings:?}")] {
            assert!(shown.contains("https://search.example:9243/feeds"), "{shown}");
            assert!(!shown.contains("ss@") && !shown.contains("ada") && !shown.contains("s3cret"), "{shown}");
        }
        let plain: ElasticAddress = "http://127.0.0.1:9200".parse().unwrap();
        assert_eq!((plain.to_string().as_str(), plain.user), ("http://127.0.0.1:9200/feedmill", None));
    }

    #[test]
    fn what_is_no_address_is_refused_without_telling_the_password() {
        for text in [
            "local",
            "ftp://h/",
            "http://",
            "http://:s3cret@h",
            "http://ada@h",
            "http://ada:s3cret@h/Feeds",
            "http://ada:s3cret@h/a/b",
            "http://ada:s3cret@h/1",
            "http://ada:s3cret@h/a?b",
        ] {
            let refused = text.parse::<ElasticAddress>().unwrap_err().to_string();
            assert!(refused.contains("http(s)://") && !refused.contains("s3cret"), "{text}: {refused}");
        }
    }
}
