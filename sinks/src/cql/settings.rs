//! Where the cluster is, and how it is spoken to.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// How many nodes must have a write before it counts, or are asked by a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// One.
    One,
    /// One of the nearest datacenter.
    LocalOne,
    /// Most replicas of all datacenters.
    Quorum,
    /// Most replicas of the nearest datacenter.
    LocalQuorum,
    /// All replicas.
    All,
}

impl Consistency {
    const ALL: [(&'static str, Consistency); 5] = [
        ("one", Consistency::One),
        ("local_one", Consistency::LocalOne),
        ("quorum", Consistency::Quorum),
        ("local_quorum", Consistency::LocalQuorum),
        ("all", Consistency::All),
    ];
}

/// Who vouches for the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Nothing is encrypted.
    Off,
    /// The certificates that this machine trusts.
    System,
    /// Those in a file, as PEM.
    File(PathBuf),
}

/// How a store in a CQL cluster is reached and written.
///
/// As text it is `cql://[user[:password]@]host[:port][,host[:port]…]/keyspace[?name=value&…]`, where the names are those of
/// the fields that have a default: `replication`, `datacenter`, `write_consistency`, `read_consistency`, `speculate_ms`,
/// `tls` (`off`, `system`, or the file of an authority), `retry_s`, `timeout_s`, `concurrency`, `partition_rows`. What is
/// not allowed in an URL is written as `%` and two digits.
#[derive(Clone, PartialEq, Eq)]
pub struct CqlSettings {
    /// Host and port of some nodes; they tell of the others.
    pub nodes: Vec<String>,
    /// The keyspace. It is made if it is not there.
    pub keyspace: String,
    /// Who signs in, if anybody has to.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// Replicas of each row in each datacenter, for a keyspace that is made. By default three, or as many as there are nodes
    /// if they are fewer.
    pub replication: Option<u16>,
    /// The nearest datacenter, whose nodes are asked; all by default.
    pub datacenter: Option<String>,
    /// Replicas that must have a write.
    pub write_consistency: Consistency,
    /// Replicas that a page is read from. What the store reads for itself, to add to it, is read with that of writes.
    pub read_consistency: Consistency,
    /// A page that was not read for so long is asked of another node too.
    pub speculate_after: Option<Duration>,
    /// Whether connections are encrypted.
    pub tls: Tls,
    /// For how long a request of the store that fails is tried again, before it gives up; one of a page is not for long.
    pub retry_for: Duration,
    /// For how long the answer to one attempt is waited for.
    pub timeout: Duration,
    /// Requests of writes that are on their way, at most. How many are depends on how fast the cluster answers.
    pub concurrency: usize,
    /// Rows of a partition, about, from which on more of its list go into others.
    pub partition_rows: u64,
}

/// Rows of a request, at most, and their bytes: above 5 KiB servers complain of it in their logs by default.
pub(super) const BATCH_ROWS: usize = 64;
pub(super) const BATCH_BYTES: usize = 4_500;

const PORT: u16 = 9042;

impl Default for CqlSettings {
    fn default() -> Self {
        CqlSettings {
            nodes: vec![format!("127.0.0.1:{PORT}")],
            keyspace: "feedmill".to_owned(),
            user: None,
            password: None,
            replication: None,
            datacenter: None,
            write_consistency: Consistency::LocalQuorum,
            read_consistency: Consistency::LocalQuorum,
            speculate_after: None,
            tls: Tls::Off,
            retry_for: Duration::from_secs(600),
            timeout: Duration::from_secs(10),
            concurrency: 256,
            partition_rows: 8_192,
        }
    }
}

impl CqlSettings {
    /// The nodes, for people.
    pub fn servers(&self) -> String {
        self.nodes.join(", ")
    }
}

impl fmt::Debug for CqlSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As an address, with what is not the default, and without the password.
impl fmt::Display for CqlSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let user = self.user.as_deref().map(|user| encoded(user) + "@").unwrap_or_default();
        write!(f, "cql://{user}{}/{}", self.nodes.join(","), self.keyspace)?;
        for (number, (name, value)) in self.options().into_iter().enumerate() {
            write!(f, "{}{name}={}", if number == 0 { "?" } else { "&" }, encoded(&value))?;
        }
        Ok(())
    }
}

/// A text that is no address of a CQL store. It does not repeat the text, which may have a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; an address of a CQL store looks like cql://user:password@host:9042,other:9042/keyspace?tls=system")]
pub struct ParseCqlError(String);

impl FromStr for CqlSettings {
    type Err = ParseCqlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem: &str| ParseCqlError(problem.to_owned());
        let rest = text.strip_prefix("cql://").ok_or_else(|| wrong("it does not begin with cql://"))?;
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (place, keyspace) = rest.split_once('/').ok_or_else(|| wrong("it names no keyspace"))?;
        let (who, nodes) = place.rsplit_once('@').map_or((None, place), |(who, nodes)| (Some(who), nodes));
        let mut settings = CqlSettings { keyspace: checked_keyspace(keyspace)?, ..CqlSettings::default() };
        if let Some(who) = who {
            let (user, password) = who.split_once(':').map_or((who, None), |(user, password)| (user, Some(password)));
            settings.user = Some(decoded(user)?);
            settings.password = password.map(decoded).transpose()?;
        }
        settings.nodes = nodes.split(',').map(node).collect::<Result<_, _>>()?;
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').ok_or_else(|| wrong("an option has no value"))?;
            settings.set(name, &decoded(value)?)?;
        }
        Ok(settings)
    }
}

impl CqlSettings {
    /// The options that are not the default, as an address has them.
    fn options(&self) -> Vec<(&'static str, String)> {
        let default = CqlSettings::default();
        let level = |level: Consistency| {
            let found = Consistency::ALL.into_iter().find(|(_, known)| *known == level);
            found.map_or_else(String::new, |(name, _)| name.to_owned())
        };
        let tls = match &self.tls {
            Tls::Off => "off".to_owned(),
            Tls::System => "system".to_owned(),
            Tls::File(file) => file.display().to_string(),
        };
        let others = [
            (self.write_consistency != default.write_consistency)
                .then(|| ("write_consistency", level(self.write_consistency))),
            (self.read_consistency != default.read_consistency)
                .then(|| ("read_consistency", level(self.read_consistency))),
            (self.tls != default.tls).then_some(("tls", tls)),
            (self.retry_for != default.retry_for).then(|| ("retry_s", self.retry_for.as_secs().to_string())),
            (self.timeout != default.timeout).then(|| ("timeout_s", self.timeout.as_secs().to_string())),
            (self.concurrency != default.concurrency).then(|| ("concurrency", self.concurrency.to_string())),
            (self.partition_rows != default.partition_rows)
                .then(|| ("partition_rows", self.partition_rows.to_string())),
        ];
        let replication = self.replication.map(|replicas| ("replication", replicas.to_string()));
        let datacenter = self.datacenter.clone().map(|datacenter| ("datacenter", datacenter));
        let speculate = self.speculate_after.map(|after| ("speculate_ms", after.as_millis().to_string()));
        [replication, datacenter, speculate].into_iter().chain(others).flatten().collect()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), ParseCqlError> {
        let wrong = |must: &str| ParseCqlError(format!("`{name}` must be {must}"));
        let number = |least: u64| {
            value.parse::<u64>().ok().filter(|number| *number >= least).ok_or_else(|| wrong("a positive number"))
        };
        let consistency = || {
            let found = Consistency::ALL.into_iter().find(|(name, _)| *name == value);
            found.map(|(_, level)| level).ok_or_else(|| wrong("one, local_one, quorum, local_quorum or all"))
        };
        match name {
            "replication" => {
                self.replication = Some(number(1)?.try_into().map_err(|_| wrong("a number of nodes"))?);
            }
            "datacenter" => self.datacenter = Some(value.to_owned()),
            // What a writer has written it must find again: counts, lists of trends, and what it deletes.
            "write_consistency" => match consistency()? {
                Consistency::One | Consistency::LocalOne => return Err(wrong("quorum, local_quorum or all")),
                level => self.write_consistency = level,
            },
            "read_consistency" => self.read_consistency = consistency()?,
            "speculate_ms" => self.speculate_after = Some(Duration::from_millis(number(1)?)),
            "tls" => {
                self.tls = match value {
                    "off" => Tls::Off,
                    "system" => Tls::System,
                    file => Tls::File(file.into()),
                };
            }
            "retry_s" => self.retry_for = Duration::from_secs(number(1)?),
            "timeout_s" => self.timeout = Duration::from_secs(number(1)?),
            "concurrency" => {
                self.concurrency = number(1)?.try_into().map_err(|_| wrong("a number of requests"))?;
            }
            "partition_rows" => self.partition_rows = number(1)?,
            _ => return Err(ParseCqlError(format!("there is no option `{name}`"))),
        }
        Ok(())
    }
}

fn decoded(text: &str) -> Result<String, ParseCqlError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| ParseCqlError("something in it is not UTF-8".to_owned()))
}

/// A name that needs no quotes.
fn checked_keyspace(name: &str) -> Result<String, ParseCqlError> {
    let fits = name.len() <= 48
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let problem = "the name of a keyspace has a letter and up to 47 letters (a–z), digits or _";
    fits.then(|| name.to_owned()).ok_or_else(|| ParseCqlError(problem.to_owned()))
}

fn node(text: &str) -> Result<String, ParseCqlError> {
    let has_port =
        text.rsplit_once(':').is_some_and(|(host, port)| !host.ends_with(':') && port.parse::<u16>().is_ok());
    match text {
        "" => Err(ParseCqlError("it names no host".to_owned())),
        _ if has_port => Ok(text.to_owned()),
        _ => Ok(format!("{text}:{PORT}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_never_printed_with_its_password() {
        let text = "cql://me:a%40b@one,two:19042/feeds?tls=/a.pem&replication=2&write_consistency=all&speculate_ms=30";
        let settings: CqlSettings = text.parse().unwrap();
        assert_eq!(settings.nodes, ["one:9042", "two:19042"]);
        assert_eq!((settings.user.as_deref(), settings.password.as_deref()), (Some("me"), Some("a@b")));
        assert_eq!((settings.replication, settings.tls.clone()), (Some(2), Tls::File("/a.pem".into())));
        assert_eq!(settings.write_consistency, Consistency::All);
        assert_eq!(settings.speculate_after, Some(Duration::from_millis(30)));
        let printed = format!("{settings:?}");
        assert!(printed.starts_with("cql://me@one:9042,two:19042/feeds?replication=2&"), "{printed}");
        assert_eq!(printed.parse::<CqlSettings>().unwrap(), CqlSettings { password: None, ..settings });
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for text in ["", "http://a/b", "cql://a", "cql://secret@/b", "cql://a/B", "cql://a/b?x=secret", "cql://a/b?tls"]
        {
            let refused = text.parse::<CqlSettings>().unwrap_err().to_string();
            assert!(!refused.contains("secret") && refused.contains("cql://user"), "{text}: {refused}");
        }
    }

    #[test]
    fn writes_are_found_again_and_pages_need_not_be() {
        let settings: CqlSettings = "cql://a/b?read_consistency=local_one".parse().unwrap();
        assert_eq!(settings.read_consistency, Consistency::LocalOne);
        for level in ["one", "local_one"] {
            let refused = format!("cql://a/b?write_consistency={level}").parse::<CqlSettings>().unwrap_err();
            assert!(refused.to_string().contains("local_quorum"), "{refused}");
        }
    }
}
