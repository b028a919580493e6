//! What can go wrong with Kafka, and whether a later attempt may succeed.

use feedmill_model::{SourceId, Time};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};

use super::Servers;

/// Why the log in Kafka could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// Kafka did not do what it was asked, and may do it later.
    #[error("could not {tried}: {why}. Is Kafka at {servers} up, and can it be reached from here?")]
    Unreachable {
        /// What was tried.
        tried: String,
        /// The brokers.
        servers: String,
        /// What is known of it.
        why: String,
    },
    /// Kafka refuses what it was asked, and will do so again.
    #[error(
        "could not {tried}: Kafka at {servers} refuses it ({why}). Mend that (rights, limits, settings), then start again"
    )]
    Refused {
        /// What was tried.
        tried: String,
        /// The brokers.
        servers: String,
        /// What it says.
        why: String,
    },
    /// Brokers do not let this process in, or it does not trust them.
    #[error(
        "could not {tried}: Kafka at {servers} does not let this process in, or cannot be trusted ({why}). It was tried to \
         {how}. Mend user, password, `sasl` and `tls` in the address of Kafka (--publish), or the users and certificates of \
         the brokers; then start again"
    )]
    Denied {
        /// What was tried.
        tried: String,
        /// The brokers.
        servers: String,
        /// What is known of it.
        why: String,
        /// How it was tried, without the password.
        how: String,
    },
    /// No client can be made with these settings.
    #[error("could not make a client of {what}: {why}. Mend {mend}")]
    Settings {
        /// Of whom.
        what: String,
        /// What is wrong.
        why: String,
        /// The setting.
        mend: &'static str,
    },
    /// The schema registry does not answer, or cannot now.
    #[error("could not {tried}: {why}. Is the schema registry at {registry} up, and can it be reached from here?")]
    RegistryAway {
        /// What was tried.
        tried: String,
        /// Where the registry is.
        registry: String,
        /// What is known of it.
        why: String,
    },
    /// The schema registry refuses to answer, or answers what cannot be understood.
    #[error(
        "could not {tried}: the schema registry at {registry} does not do it ({why}). Mend the address of the registry \
         (--registry), its path, user and password, or what is registered there; then start again"
    )]
    RegistryRefused {
        /// What was tried.
        tried: String,
        /// Where the registry is.
        registry: String,
        /// What it says.
        why: String,
    },
    /// The schema registry does not take a schema.
    #[error(
        "the schema registry at {registry} refuses the schema of {subject}: those who read what is there could not read what \
         would be published ({why}). Remove the subject there, or set a compatibility for it that lets the schema in, if \
         nobody reads by it; or name other topics with --topic-prefix. Then start again"
    )]
    Incompatible {
        /// Whose schema.
        subject: String,
        /// Where the registry is.
        registry: String,
        /// What it says.
        why: String,
    },
    /// A log would go on in another format.
    #[error(
        "the log of {topics} began as {found}, and would go on as {asked}, in which its rows have other keys. Set \
         --topic-format {found}, or name other topics with --topic-prefix, and all is published anew"
    )]
    OtherFormat {
        /// The topic `times`.
        topics: String,
        /// In which it began.
        found: &'static str,
        /// In which it would go on.
        asked: &'static str,
    },
    /// Records are Avro, and it is not known who has their schemas.
    #[error(
        "the records of {topic} are Avro, and it is not said who has their schemas: name the registry with --registry"
    )]
    NoRegistry {
        /// Which topic.
        topic: String,
    },
    /// Another publisher has taken over.
    #[error(
        "another publisher has taken over the topics of {topics}, so this one publishes no more: it was fenced by the \
         transactional id {id}. Let one `feedmill capture` run for these topics, or give the other one a --topic-prefix of \
         its own. (One process alone sees this when it was stopped for longer than a minute in the middle of a transaction: \
         then start it again.)"
    )]
    Fenced {
        /// The topic `times`.
        topics: String,
        /// The transactional id.
        id: String,
    },
    /// A topic is not as it has to be.
    #[error("the topic {topic} has {found}, and must have {expected}: {mend}")]
    Topic {
        /// Its name.
        topic: String,
        /// What it has.
        found: String,
        /// What it must have.
        expected: String,
        /// How to mend it.
        mend: String,
    },
    /// The topics are of another change log.
    #[error(
        "the topics of {topics} hold the log of another source or of another data folder: they end at time {time} of \
         {found}, which this change log ({known}) does not have. Name other topics with --topic-prefix, or remove these, \
         and all is published anew"
    )]
    Foreign {
        /// The topic `times`.
        topics: String,
        /// The last time there.
        time: Time,
        /// Its source.
        found: SourceId,
        /// What is known here.
        known: String,
    },
    /// Retention took everything, so nobody knows how far it was published.
    #[error(
        "the topic {topic} is empty, and was not: its retention has passed everything that was published, so it cannot be \
         told where to go on. Remove the topics of this log, and all is published anew; or name others with --topic-prefix"
    )]
    Forgotten {
        /// The topic `times`.
        topic: String,
    },
    /// What is asked for is not retained any more.
    #[error(
        "the log in Kafka does not have everything after time {asked} any more: {found}. Whoever asks has been away for \
         longer than the topics retain (--topic-retention-hours): run `feedmill replay`, which fills the stores from the \
         rows as they are now"
    )]
    Gone {
        /// The time after which all is needed.
        asked: Time,
        /// What there is.
        found: String,
    },
    /// What is asked for was never published.
    #[error(
        "time {asked} is beyond the log in Kafka, which ends at {newest}: whoever asks is of another history. Remove what it \
         holds, and it is filled again"
    )]
    Beyond {
        /// What was asked for.
        asked: Time,
        /// Time of the newest batch.
        newest: Time,
    },
    /// Nothing was published yet, or not yet all of the first state.
    #[error(
        "the log in Kafka ({topic}) has no finished state yet: start `feedmill capture`, or wait until it has published it"
    )]
    NotReady {
        /// The topic `times`.
        topic: String,
    },
    /// A record is not what was published.
    #[error(
        "record {offset} of {topic}, partition {partition}, cannot be used: {why}. Does something else write there?"
    )]
    Unusable {
        /// Of which topic.
        topic: String,
        /// Of which partition.
        partition: i32,
        /// Where it is.
        offset: i64,
        /// What is wrong with it.
        why: String,
    },
}

impl KafkaError {
    /// Whether a later attempt may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, KafkaError::Unreachable { .. } | KafkaError::NotReady { .. } | KafkaError::RegistryAway { .. })
    }
}

/// Errors that stay until somebody changes something.
const LASTING: [Code; 12] = [
    Code::TopicAuthorizationFailed,
    Code::GroupAuthorizationFailed,
    Code::ClusterAuthorizationFailed,
    Code::TransactionalIdAuthorizationFailed,
    Code::UnsupportedVersion,
    Code::InvalidConfig,
    Code::InvalidTopic,
    Code::InvalidPartitions,
    Code::InvalidTransactionTimeout,
    Code::PolicyViolation,
    Code::MessageSizeTooLarge,
    Code::UnsupportedForMessageFormat,
];

/// Whether another producer has taken the transactional id.
pub(crate) fn is_fenced(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

/// Whether brokers refused to let a client in, or it them. A connection that is lost while it is made has another code.
pub(crate) fn is_denied(code: Code) -> bool {
    matches!(code, Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL)
}

/// What the library says, as one of ours.
pub(crate) fn failed(tried: impl Into<String>, servers: &Servers, code: Option<Code>, why: String) -> KafkaError {
    let (tried, how, servers) = (tried.into(), servers.how(), servers.to_string());
    match code {
        Some(code) if is_denied(code) => KafkaError::Denied { tried, servers, why, how },
        Some(code) if LASTING.contains(&code) => KafkaError::Refused { tried, servers, why },
        _ => KafkaError::Unreachable { tried, servers, why },
    }
}

/// A client that cannot be made.
pub(crate) fn unusable_settings(servers: &Servers, error: &Native) -> KafkaError {
    KafkaError::Settings {
        what: format!("Kafka at {servers}"),
        why: format!("{error}; it was to {}", servers.how()),
        mend: "the address of Kafka (--publish)",
    }
}
