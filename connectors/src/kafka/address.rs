//! Where brokers are, and how they are spoken to: `kafka://user:password@one:9092,two:9092?tls=system`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rdkafka::ClientConfig;

/// Brokers by which a cluster is reached, and how.
///
/// As text it is `kafka://[user:password@]host:port[,host:port…][?name=value&…]`, with the options `tls` (`off`, `system`, or
/// the file of an authority) and `sasl` (`scram-sha-512`, `scram-sha-256` or `plain`). What is not allowed in an URL is written
/// as `%` and two digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Servers {
    /// Those that are named need not be all of them.
    brokers: Vec<String>,
    user: Option<User>,
    tls: Tls,
}

/// Who signs in.
#[derive(Clone, PartialEq, Eq)]
struct User {
    name: String,
    password: String,
    mechanism: Mechanism,
}

/// How a password is shown to brokers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mechanism {
    /// It is not sent.
    #[default]
    ScramSha512,
    /// It is not sent.
    ScramSha256,
    /// It is sent.
    Plain,
}

/// Who vouches for the brokers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Tls {
    /// Nothing is encrypted.
    #[default]
    Off,
    /// The certificates that this machine trusts.
    System,
    /// Those in a file, as PEM.
    File(PathBuf),
}

impl Mechanism {
    const ALL: [(&'static str, Mechanism); 3] = [
        ("scram-sha-512", Mechanism::ScramSha512),
        ("scram-sha-256", Mechanism::ScramSha256),
        ("plain", Mechanism::Plain),
    ];

    fn name(self) -> &'static str {
        Mechanism::ALL.into_iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }
}

impl Servers {
    /// Whether it holds a password.
    pub fn has_password(&self) -> bool {
        self.user.is_some()
    }

    /// As an address, without the password.
    pub fn address(&self) -> String {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let user = self.user.as_ref().map(|user| encoded(&user.name) + "@").unwrap_or_default();
        let tls = match &self.tls {
            Tls::Off => None,
            Tls::System => Some("system".to_owned()),
            Tls::File(file) => Some(encoded(&file.display().to_string())),
        };
        let mechanism = self.user.as_ref().map(|user| user.mechanism).filter(|known| *known != Mechanism::default());
        let options = [("tls", tls), ("sasl", mechanism.map(|mechanism| mechanism.name().to_owned()))];
        let options = options.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        let options = options.collect::<Vec<_>>().join("&");
        let question = if options.is_empty() { "" } else { "?" };
        format!("kafka://{user}{self}{question}{options}")
    }

    /// What a client has to know of them.
    pub(super) fn configure(&self, config: &mut ClientConfig) {
        config.set("bootstrap.servers", self.to_string());
        let protocol = match (&self.user, &self.tls) {
            (None, Tls::Off) => "plaintext",
            (None, _) => "ssl",
            (Some(_), Tls::Off) => "sasl_plaintext",
            (Some(_), _) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Tls::File(file) = &self.tls {
            config.set("ssl.ca.location", file.display().to_string());
        }
        if let Some(User { name, password, mechanism }) = &self.user {
            config.set("sasl.mechanism", mechanism.name().to_ascii_uppercase());
            config.set("sasl.username", name).set("sasl.password", password);
        }
    }

    /// How a client signs in, and whom it trusts, without the password.
    pub(super) fn how(&self) -> String {
        let user = match &self.user {
            Some(user) => format!("sign in as {} by {} (sasl=…)", user.name, user.mechanism.name()),
            None => "sign in as nobody (user:password@…)".to_owned(),
        };
        let tls = match &self.tls {
            Tls::Off => "without TLS (tls=…)".to_owned(),
            Tls::System => "by TLS with the authorities that this machine trusts (tls=system)".to_owned(),
            Tls::File(file) => format!("by TLS with the authorities in {} (tls=…)", file.display()),
        };
        format!("{user}, {tls}")
    }
}

/// The brokers, for people.
impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.brokers.join(","))
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address())
    }
}

/// A text that is no address of Kafka. It does not repeat the text, which may have a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; an address of Kafka looks like kafka://one.example:9092,two.example:9092, or with a user and TLS \
     kafka://user:password@one.example:9093?tls=system&sasl=scram-sha-512"
)]
pub struct ParseServersError(String);

impl FromStr for Servers {
    type Err = ParseServersError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem: &str| ParseServersError(problem.to_owned());
        let rest = text.strip_prefix("kafka://").ok_or_else(|| wrong("it does not begin with kafka://"))?;
        let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (who, brokers) = place.rsplit_once('@').map_or((None, place), |(who, brokers)| (Some(who), brokers));
        let brokers = brokers.trim_end_matches('/').split(',').map(broker).collect::<Result<_, _>>()?;
        let (mut tls, mut mechanism) = (Tls::default(), None);
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').ok_or_else(|| wrong("an option has no value"))?;
            let value = decoded(value)?;
            match name {
                "tls" => {
                    tls = match value.as_str() {
                        "off" => Tls::Off,
                        "system" => Tls::System,
                        "" => return Err(wrong("`tls` must be off, system, or the file of an authority")),
                        file => Tls::File(file.into()),
                    };
                }
                "sasl" => {
                    let known = Mechanism::ALL.into_iter().find(|(name, _)| *name == value);
                    let known = known.ok_or_else(|| wrong("`sasl` must be scram-sha-512, scram-sha-256 or plain"))?;
                    mechanism = Some(known.1);
                }
                _ => return Err(wrong("there are no options but `tls` and `sasl`")),
            }
        }
        let user = match who {
            Some(who) => {
                let (name, password) = who.split_once(':').ok_or_else(|| wrong("its user has no password"))?;
                let (name, password) = (decoded(name)?, decoded(password)?);
                if name.is_empty() || password.is_empty() {
                    return Err(wrong("its user has no name or no password"));
                }
                Some(User { name, password, mechanism: mechanism.unwrap_or_default() })
            }
            None if mechanism.is_some() => return Err(wrong("`sasl` needs a user and a password")),
            None => None,
        };
        Ok(Servers { brokers, user, tls })
    }
}

fn decoded(text: &str) -> Result<String, ParseServersError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| ParseServersError("something in it is not UTF-8".to_owned()))
}

fn broker(text: &str) -> Result<String, ParseServersError> {
    let wrong = || ParseServersError("a broker is no host:port".to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let is_one = !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok();
    is_one.then(|| text.to_owned()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_read_and_what_is_none_is_refused() {
        let read = |text: &str| text.parse::<Servers>().map(|servers| servers.to_string());
        assert_eq!(read("kafka://one:9092").as_deref(), Ok("one:9092"));
        assert_eq!(read("kafka://one:9092,[::1]:9093/").as_deref(), Ok("one:9092,[::1]:9093"));
        for text in [
            "",
            "one:9092",
            "kafka://",
            "kafka://one",
            "kafka://one:port",
            "kafka://one:9092,",
            "kafka://:1",
            "kafka://secret@one:1",
            "kafka://me:@one:1",
            "kafka://one:1?sasl=plain",
            "kafka://one:1?tls=",
            "kafka://me:secret@one:1?sasl=secret",
            "kafka://me:secret@one:1?secret=1",
            "kafka://me:secret@one",
        ] {
            let refused = text.parse::<Servers>().expect_err(text).to_string();
            assert!(!refused.contains("secret") && refused.contains("kafka://one.example"), "{text}: {refused}");
        }
    }

    #[test]
    fn who_signs_in_and_how_is_told_to_the_library_and_the_password_to_nobody_else() {
        let text = "kafka://m%2Fe:se%40cret@one:9093,two:9093?tls=/a%20b.pem&sasl=plain";
        let servers: Servers = text.parse().expect("an address");
        let printed = "kafka://m%2Fe@one:9093,two:9093?tls=%2Fa%20b%2Epem&sasl=plain";
        assert_eq!(format!("{servers:?}"), printed);
        assert_eq!((servers.address().as_str(), servers.to_string().as_str()), (printed, "one:9093,two:9093"));
        assert!(!servers.how().contains("se@cret"));
        let mut config = ClientConfig::new();
        servers.configure(&mut config);
        for (name, value) in [
            ("bootstrap.servers", "one:9093,two:9093"),
            ("security.protocol", "sasl_ssl"),
            ("ssl.ca.location", "/a b.pem"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "m/e"),
            ("sasl.password", "se@cret"),
        ] {
            assert_eq!(config.get(name), Some(value));
        }
        for (text, protocol, mechanism) in [
            ("kafka://one:1", "plaintext", None),
            ("kafka://one:1?tls=system", "ssl", None),
            ("kafka://me:secret@one:1", "sasl_plaintext", Some("SCRAM-SHA-512")),
            ("kafka://me:secret@one:1?sasl=scram-sha-256&tls=off", "sasl_plaintext", Some("SCRAM-SHA-256")),
        ] {
            let mut config = ClientConfig::new();
            text.parse::<Servers>().expect("an address").configure(&mut config);
            assert_eq!((config.get("security.protocol"), config.get("sasl.mechanism")), (Some(protocol), mechanism));
        }
    }
}
