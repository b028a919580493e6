//! The schema registry: what schemas records in Avro are written with, by the API that Confluent's has.
//!
//! ```text
//!   Registry::register  POST /subjects/TOPIC-value/versions {schema} ─► id    before anything is published with it
//!   Schemas::of         GET  /schemas/ids/ID ─► {schema}                      once, by who reads a record of that id
//! ```
//!
//! A schema that is there already is answered with the id that it has, so each start asks the same and gets the same. A
//! registry that is away is asked again by whoever waits for Kafka too; one that refuses a schema is not.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use apache_avro::Schema;
use feedmill_model::{Change, Key, Relation};
use parking_lot::Mutex;
use rdkafka::message::Message;
use reqwest_of_elasticsearch::blocking::{Client, RequestBuilder};
use reqwest_of_elasticsearch::{Error as HttpError, StatusCode, Url};
use serde::Deserialize;
use serde_json::json;

use super::avro::{self, Ids};
use super::error::KafkaError;
use super::times::unusable;
use super::topics::{KafkaLog, Topics};
use super::{columns, envelope};

/// How long a registry may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// What is repeated of what it says, at most.
const SAID_MAX: usize = 600;

/// Where a registry is: `http(s)://[user:password@]host[:port][/path]`. Printed without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryAddress {
    /// Without user and password.
    url: Url,
    user: Option<(String, String)>,
}

/// A text that is no such address. It does not repeat the text, which may have a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; an address of a schema registry is http(s)://[user:password@]host:port[/path]")]
pub struct ParseRegistryError(String);

impl FromStr for RegistryAddress {
    type Err = ParseRegistryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |what: &str| ParseRegistryError(what.to_owned());
        let mut url: Url = text.parse().map_err(|error| ParseRegistryError(format!("it is no URL ({error})")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused("it begins with neither http:// nor https://"));
        }
        if url.host_str().is_none_or(str::is_empty) || url.query().is_some() || url.fragment().is_some() {
            return Err(refused("it names no host, or goes on after the path"));
        }
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = match (decoded(url.username()), url.password().map(decoded)) {
            (user, Some(password)) if !user.is_empty() => Some((user, password)),
            (user, None) if user.is_empty() => None,
            _ => return Err(refused("it has a user or a password, but not both")),
        };
        // They refuse only URLs without a host.
        let _ = (url.set_username(""), url.set_password(None));
        Ok(RegistryAddress { url, user })
    }
}

impl RegistryAddress {
    /// Whether it has a password.
    pub fn has_password(&self) -> bool {
        self.user.is_some()
    }
}

/// Without the password.
impl fmt::Display for RegistryAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for RegistryAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A registry, to be asked.
struct Registry {
    address: RegistryAddress,
    http: Client,
}

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

#[derive(Deserialize)]
struct Found {
    schema: String,
}

impl Registry {
    fn at(address: &RegistryAddress) -> Result<Self, KafkaError> {
        let http = Client::builder().timeout(ANSWER_MAX).no_proxy().build();
        let http = http.map_err(|error| KafkaError::Settings {
            what: format!("the schema registry at {address}"),
            why: error.to_string(),
            mend: "--registry",
        })?;
        Ok(Registry { address: address.clone(), http })
    }

    fn ask(&self, request: RequestBuilder, tried: &str, subject: &str) -> Result<String, KafkaError> {
        let request = match &self.address.user {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        let away =
            |why: String| KafkaError::RegistryAway { tried: tried.to_owned(), registry: self.address.to_string(), why };
        let answer = request.header("Accept", MEDIA_TYPE).send().map_err(|error| away(told(error)))?;
        let status = answer.status();
        let said = answer.text().map_err(|error| away(told(error)))?;
        if status.is_success() {
            return Ok(said);
        }
        let why = format!("{status}: {}", said.chars().take(SAID_MAX).collect::<String>());
        let registry = self.address.to_string();
        match status {
            StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(KafkaError::Incompatible { subject: subject.to_owned(), registry, why })
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Err(away(why)),
            _ if status.is_server_error() => Err(away(why)),
            _ => Err(KafkaError::RegistryRefused { tried: tried.to_owned(), registry, why }),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.address)
    }

    /// The id of a schema, which is registered if it is new.
    fn register(&self, subject: &str, schema: &str) -> Result<u32, KafkaError> {
        let tried = format!("register the schema of {subject}");
        let request = self.http.post(self.url(&format!("subjects/{subject}/versions")));
        let body = json!({ "schema": schema }).to_string();
        let said = self.ask(request.header("Content-Type", MEDIA_TYPE).body(body), &tried, subject)?;
        let registered: Registered = self.understood(&said, &tried)?;
        Ok(registered.id)
    }

    fn schema(&self, id: u32) -> Result<Schema, KafkaError> {
        let tried = format!("ask for the schema {id}");
        let said = self.ask(self.http.get(self.url(&format!("schemas/ids/{id}"))), &tried, "")?;
        let found: Found = self.understood(&said, &tried)?;
        Schema::parse_str(&found.schema).map_err(|error| self.odd(&tried, error.to_string()))
    }

    fn understood<'a, V: Deserialize<'a>>(&self, said: &'a str, tried: &str) -> Result<V, KafkaError> {
        serde_json::from_str(said).map_err(|error| self.odd(tried, error.to_string()))
    }

    fn odd(&self, tried: &str, why: String) -> KafkaError {
        KafkaError::RegistryRefused { tried: tried.to_owned(), registry: self.address.to_string(), why }
    }
}

/// An error and what is below it: by itself the first says little.
fn told(error: HttpError) -> String {
    let error = error.without_url();
    let mut told = error.to_string();
    let mut below = std::error::Error::source(&error);
    while let Some(error) = below {
        told = format!("{told}: {error}");
        below = error.source();
    }
    told
}

/// Registers the schemas of all topics of a log, as `TOPIC-key` and `TOPIC-value`, and gives their ids, by the topic's number.
pub(super) fn register(log: &KafkaLog, address: &RegistryAddress) -> Result<Vec<Ids>, KafkaError> {
    let (registry, topics) = (Registry::at(address)?, Topics::of(log));
    let mut ids = vec![Ids::default(); topics.changes().count() * 2];
    for relation in Relation::ALL {
        let (key, value) = (avro::key_schema(&log.prefix, relation), avro::value_schema(&log.prefix, relation));
        let (changes, rows) = topics.numbers(relation);
        for number in [changes, rows] {
            let topic = topics.name(number);
            let registered = Ids {
                key: registry.register(&format!("{topic}-key"), &key)?,
                value: registry.register(&format!("{topic}-value"), &value)?,
            };
            if let Some(ids) = ids.get_mut(number) {
                *ids = registered;
            }
        }
    }
    Ok(ids)
}

/// Reads records whichever way they were written, and the schemas of those that are Avro.
pub(super) struct Schemas {
    topics: Topics,
    registry: Option<Registry>,
    known: Mutex<HashMap<u32, Arc<Schema>>>,
}

impl Schemas {
    pub fn of(log: &KafkaLog) -> Result<Self, KafkaError> {
        let registry = log.registry.as_ref().map(Registry::at).transpose()?;
        Ok(Schemas { topics: Topics::of(log), registry, known: Mutex::default() })
    }

    /// The change that a record tells of, which for a row as it is has no old row.
    pub fn change(&self, message: &impl Message) -> Result<Change, KafkaError> {
        let value = message.payload().unwrap_or_default();
        let change = match avro::parts(value) {
            Some((id, datum)) => avro::change(&*self.schema(message, id)?, datum),
            None => envelope::change(value).map_err(|error| error.to_string()),
        };
        change.map_err(|why| unusable(message, why))
    }

    /// The key of a record.
    pub fn key(&self, message: &impl Message) -> Result<Key, KafkaError> {
        let key = message.key().unwrap_or_default();
        let relation = |table: Option<&str>| self.topics.relation(message.topic(), table);
        let key = match avro::parts(key) {
            Some((id, datum)) => {
                let schema = self.schema(message, id)?;
                relation(None)
                    .ok_or_else(|| "it is of no table that is known".to_owned())
                    .and_then(|relation| avro::key(&schema, datum, relation))
            }
            None => columns::key(key, relation).map_err(|error| error.to_string()),
        };
        key.map_err(|why| unusable(message, why))
    }

    fn schema(&self, message: &impl Message, id: u32) -> Result<Arc<Schema>, KafkaError> {
        let mut known = self.known.lock();
        if let Some(schema) = known.get(&id) {
            return Ok(Arc::clone(schema));
        }
        let registry = self.registry.as_ref();
        let registry = registry.ok_or_else(|| KafkaError::NoRegistry { topic: message.topic().to_owned() })?;
        let schema = Arc::new(registry.schema(id)?);
        known.insert(id, Arc::clone(&schema));
        Ok(schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_never_printed_with_its_password() {
        let address: RegistryAddress = "https://me:a%40b@one:8081/apis/v7/".parse().expect("an address");
        assert_eq!(address.user, Some(("me".to_owned(), "a@b".to_owned())));
        assert!(address.has_password());
        for printed in [address.to_string(), format!("{address:?}")] {
            assert_eq!(printed, "https://one:8081/apis/v7");
        }
        for text in ["", "one:8081", "ftp://secret:secret@one", "http://secret@one", "http://one/?secret=1"] {
            let refused = text.parse::<RegistryAddress>().expect_err(text).to_string();
            assert!(!refused.contains("secret") && refused.contains("http(s)://"), "{text}: {refused}");
        }
    }
}
