//! The settings: one typed struct, of which flags, environment variables and the file are views.
//!
//! ```text
//!   default  <  file (--config, TOML)  <  FEEDMILL_… variable  <  flag
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use axum::http::HeaderValue;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use feedmill_api::RateLimits;
use feedmill_connectors::postgres::Source;
use feedmill_model::Parameters;
use feedmill_sinks::cql::{CacheAges, CqlSettings};
use feedmill_sinks::{ElasticAddress, ElasticSettings};
use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use figment::value::Dict;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Settings that every command takes.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// File with settings (TOML); its keys are the names of the flags, with `_` for `-`
    #[arg(long, env = "FEEDMILL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Folder for everything that is kept: change log, stores, keys, the private PostgreSQL cluster
    #[arg(long, env = "FEEDMILL_DATA", value_name = "DIR", default_value_os_t = default_data())]
    pub data: PathBuf,

    /// PostgreSQL to use instead of a private cluster: postgresql://user@host/database?sslmode=verify-full&sslrootcert=FILE.
    /// A password here is seen in the list of processes; the variable and the file keep it to themselves
    #[arg(long, env = "FEEDMILL_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,

    /// Where the search index lies: local, in the data folder; or an Elasticsearch, http(s)://user:password@host:port/prefix,
    /// of which user, password and prefix may be left out: names of indices begin with the prefix, or with feedmill. A
    /// password here is seen in the list of processes; the variable and the file keep it to themselves
    #[arg(long, env = "FEEDMILL_SEARCH", value_name = "WHERE", default_value = LOCAL, hide_env_values = true)]
    pub search: String,

    /// Key of the Elasticsearch of --search, as it gives it encoded, instead of user and password; better given by the
    /// variable or the file
    #[arg(long, env = "FEEDMILL_SEARCH_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub search_api_key: Option<String>,

    /// File (PEM) of authorities that sign the certificate of the Elasticsearch, beside those that everybody knows
    #[arg(long, env = "FEEDMILL_SEARCH_AUTHORITY", value_name = "FILE")]
    pub search_authority: Option<PathBuf>,
    /// CQL cluster (ScyllaDB, Cassandra) for facts, rows, reactions and home timelines, instead of the data folder:
    /// cql://user:password@host:9042,other:9042/keyspace?replication=3&tls=system. Of a password holds what is said of
    /// --database-url
    #[arg(long, env = "FEEDMILL_STORE", value_name = "URL", hide_env_values = true)]
    pub store: Option<String>,

    /// File with the keys that sign tokens, which all instances of an API share; by default `keys` in the data folder, where it
    /// is made. `feedmill serve` must be given one
    #[arg(long, env = "FEEDMILL_KEYS", value_name = "FILE")]
    pub keys: Option<PathBuf>,

    /// Address to serve HTTP on
    #[arg(long, env = "FEEDMILL_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Dataflow workers (threads), and as many again for what likes bring; the default is half of the cores
    #[arg(long, env = "FEEDMILL_WORKERS", value_name = "N", default_value_t = default_workers())]
    pub workers: usize,

    /// Days for which an entry stays in pushed home timelines
    #[arg(long, env = "FEEDMILL_FANOUT_DAYS", value_name = "DAYS", default_value_t = Parameters::default().fanout_days)]
    pub fanout_days: u32,

    /// Days for which a user counts as active after the last activity
    #[arg(long, env = "FEEDMILL_ACTIVE_DAYS", value_name = "DAYS", default_value_t = Parameters::default().active_days)]
    pub active_days: u32,

    /// Followers at which an account is merged at read instead of pushed
    #[arg(long, env = "FEEDMILL_HOT_FOLLOWERS", value_name = "N", default_value_t = Parameters::default().hot_followers)]
    pub hot_followers: u64,

    /// Changes of entries or follows in one batch above which it is not fanned out
    #[arg(long, env = "FEEDMILL_BULK_ROWS", value_name = "N", default_value_t = Parameters::default().bulk_rows)]
    pub bulk_rows: usize,

    /// Entries at which a pushed home timeline is cut
    #[arg(long, env = "FEEDMILL_HOME_MAX", value_name = "N", default_value_t = Parameters::default().home_max)]
    pub home_max: usize,

    /// Entries that a cut leaves
    #[arg(long, env = "FEEDMILL_HOME_KEEP", value_name = "N", default_value_t = Parameters::default().home_keep)]
    pub home_keep: usize,

    /// Accounts followed of which timelines are merged at read
    #[arg(long, env = "FEEDMILL_FOLLOWING_MAX", value_name = "N", default_value_t = Parameters::default().following_max)]
    pub following_max: usize,

    /// Milliseconds for which a read waits for the write of its consistency token
    #[arg(long, env = "FEEDMILL_READ_WAIT_MS", value_name = "MS", default_value_t = 2_000)]
    pub read_wait_ms: u64,

    /// Marks cookies as for TLS alone, also where no proxy says by X-Forwarded-Proto that a client came by it
    #[arg(long, env = "FEEDMILL_SECURE_COOKIES")]
    pub secure_cookies: bool,

    /// Streams of live updates at a time
    #[arg(long, env = "FEEDMILL_STREAMS_MAX", value_name = "N", default_value_t = 20_000)]
    pub streams_max: usize,

    /// Streams of live updates of one user
    #[arg(long, env = "FEEDMILL_STREAMS_PER_USER", value_name = "N", default_value_t = 10)]
    pub streams_per_user: usize,

    /// Milliseconds of silence after which a stream gives a sign of life
    #[arg(long, env = "FEEDMILL_STREAM_HEARTBEAT_MS", value_name = "MS", default_value_t = 15_000)]
    pub stream_heartbeat_ms: u64,

    /// Milliseconds for which the client of a stream may take nothing of what is sent
    #[arg(long, env = "FEEDMILL_STREAM_STALL_MS", value_name = "MS", default_value_t = 10_000)]
    pub stream_stall_ms: u64,

    /// Minutes for which an access token holds; then its session is refreshed
    #[arg(long, env = "FEEDMILL_ACCESS_MINUTES", value_name = "MINUTES", default_value_t = 15)]
    pub access_minutes: u64,

    /// Seconds for which `feedmill serve` goes on to answer when it is told to stop, while /ready says 503: as long as a load
    /// balancer takes to notice
    #[arg(long, env = "FEEDMILL_DRAIN_SECONDS", value_name = "SECONDS", default_value_t = 5)]
    pub drain_seconds: u64,

    /// Seconds for which `feedmill serve` may take the row and the counts of an account from memory, while no store moves on; 0
    /// for not at all
    #[arg(long, env = "FEEDMILL_PROFILE_CACHE_SECONDS", value_name = "SECONDS", default_value_t = 60)]
    pub profile_cache_seconds: u64,

    /// The same of timelines of accounts
    #[arg(long, env = "FEEDMILL_TIMELINE_CACHE_SECONDS", value_name = "SECONDS", default_value_t = 10)]
    pub timeline_cache_seconds: u64,

    /// Days for which one stays signed in without refreshing the session
    #[arg(long, env = "FEEDMILL_SESSION_DAYS", value_name = "DAYS", default_value_t = 30)]
    pub session_days: u64,

    /// Connections to PostgreSQL for the API, and as many to the replica
    #[arg(long, env = "FEEDMILL_POOL_SIZE", value_name = "N", default_value_t = 16)]
    pub pool_size: usize,

    /// Streaming replica of the database, for what the API reads from PostgreSQL; an address like that of --database-url
    #[arg(long, env = "FEEDMILL_REPLICA_URL", value_name = "URL", hide_env_values = true)]
    pub replica_url: Option<String>,

    /// Sign-ins a minute that are tried under one name from one address, right or wrong; 0 for any number, as for each
    /// limit below
    #[arg(
        long,
        env = "FEEDMILL_LIMIT_LOGIN_USER",
        value_name = "N",
        default_value_t = RateLimits::default().login_user,
    )]
    pub limit_login_user: u32,

    /// Sign-ins a minute that are tried under one name, wherever from
    #[arg(
        long,
        env = "FEEDMILL_LIMIT_LOGIN_NAME",
        value_name = "N",
        default_value_t = RateLimits::default().login_name,
    )]
    pub limit_login_name: u32,

    /// Sign-ins a minute from one address
    #[arg(
        long,
        env = "FEEDMILL_LIMIT_LOGIN_ADDRESS",
        value_name = "N",
        default_value_t = RateLimits::default().login_address,
    )]
    pub limit_login_address: u32,

    /// Registrations a minute from one address
    #[arg(
        long,
        env = "FEEDMILL_LIMIT_REGISTER_ADDRESS",
        value_name = "N",
        default_value_t = RateLimits::default().register_address,
    )]
    pub limit_register_address: u32,

    /// Writes a minute by one user
    #[arg(
        long,
        env = "FEEDMILL_LIMIT_WRITE_USER",
        value_name = "N",
        default_value_t = RateLimits::default().write_user,
    )]
    pub limit_write_user: u32,

    /// Writes a minute from one address without a valid token: renewals of sessions, and what is refused
    #[arg(
        long,
        env = "FEEDMILL_LIMIT_WRITE_ADDRESS",
        value_name = "N",
        default_value_t = RateLimits::default().write_address,
    )]
    pub limit_write_address: u32,

    /// Reads a minute by one user
    #[arg(long, env = "FEEDMILL_LIMIT_READ_USER", value_name = "N", default_value_t = RateLimits::default().read_user)]
    pub limit_read_user: u32,

    /// Reads a minute from one address without a valid token
    #[arg(
        long,
        env = "FEEDMILL_LIMIT_READ_ADDRESS",
        value_name = "N",
        default_value_t = RateLimits::default().read_address,
    )]
    pub limit_read_address: u32,

    /// Searches a minute by one user
    #[arg(
        long,
        env = "FEEDMILL_LIMIT_SEARCH_USER",
        value_name = "N",
        default_value_t = RateLimits::default().search_user,
    )]
    pub limit_search_user: u32,

    /// Searches a minute from one address without a valid token
    #[arg(
        long,
        env = "FEEDMILL_LIMIT_SEARCH_ADDRESS",
        value_name = "N",
        default_value_t = RateLimits::default().search_address,
    )]
    pub limit_search_address: u32,

    /// Exports a minute by one user
    #[arg(
        long,
        env = "FEEDMILL_LIMIT_EXPORT_USER",
        value_name = "N",
        default_value_t = RateLimits::default().export_user,
    )]
    pub limit_export_user: u32,

    /// Networks of proxies whose X-Forwarded-For and traceparent are believed: 10.0.0.0/8,192.0.2.7/32
    #[arg(long, env = "FEEDMILL_TRUSTED_PROXIES", value_name = "NETWORKS", value_delimiter = ',')]
    pub trusted_proxies: Vec<IpNet>,

    /// Reads that may be under way; of writes half as many, of searches and of sign-ins a quarter. More get 503
    #[arg(long, env = "FEEDMILL_REQUESTS_MAX", value_name = "N", default_value_t = 1_024)]
    pub requests_max: usize,

    /// Connections of clients that may be open. More get 503
    #[arg(long, env = "FEEDMILL_CONNECTIONS_MAX", value_name = "N", default_value_t = 20_000)]
    pub connections_max: usize,

    /// Of these, connections of one address that is no trusted proxy; 0 for any number
    #[arg(long, env = "FEEDMILL_CONNECTIONS_PER_ADDRESS", value_name = "N", default_value_t = 2_000)]
    pub connections_per_address: usize,

    /// Seconds within which the head of a request has to be there, and for which a connection may be idle; behind a load
    /// balancer, longer than its connections may be
    #[arg(long, env = "FEEDMILL_IDLE_SECONDS", value_name = "SECONDS", default_value_t = 75)]
    pub idle_seconds: u64,

    /// Origins whose pages may use the API from a browser: `https://app.example,https://beta.example`; or * for all, then
    /// without cookies
    #[arg(long, env = "FEEDMILL_CORS_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    pub cors_origins: Vec<String>,

    /// Seconds for which browsers are told to use HTTPS alone (Strict-Transport-Security); 0 for not
    #[arg(long, env = "FEEDMILL_HSTS_SECONDS", value_name = "SECONDS", default_value_t = 0)]
    pub hsts_seconds: u64,

    /// File to which a line of JSON is added for each request
    #[arg(long, env = "FEEDMILL_ACCESS_LOG", value_name = "FILE")]
    pub access_log: Option<PathBuf>,

    /// Where traces of requests are sent (OTLP over HTTP): http://collector:4318/v1/traces
    #[arg(long, env = "FEEDMILL_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// Which part of the requests is traced, of those that do not come from a trusted proxy as a part of a trace: 0 to 1
    #[arg(long, env = "FEEDMILL_OTLP_SAMPLE", value_name = "RATIO", default_value_t = 0.1)]
    pub otlp_sample: f64,

    /// What to do when the database no longer continues what was read from it: it was restored, promoted or replaced,
    /// or the replication slot is gone, lost or has moved
    #[arg(long, env = "FEEDMILL_ON_MISMATCH", value_name = "POLICY", value_enum, default_value_t = OnMismatch::Stop)]
    pub on_mismatch: OnMismatch,

    /// Connections over which the source is copied
    #[arg(long, env = "FEEDMILL_COPY_CONNECTIONS", value_name = "N", default_value_t = default_copy_connections())]
    pub copy_connections: usize,

    /// Seconds between saves of home timelines, which live in memory
    #[arg(long, env = "FEEDMILL_SAVE_SECONDS", value_name = "SECONDS", default_value_t = 30)]
    pub save_seconds: u64,

    /// Minutes for which the change log keeps batches that every store has
    #[arg(long, env = "FEEDMILL_TAIL_MINUTES", value_name = "MINUTES", default_value_t = 60)]
    pub tail_minutes: u64,

    /// Bytes of its log that PostgreSQL may keep for the slot before an alarm is raised
    #[arg(long, env = "FEEDMILL_ALARM_WAL_BYTES", value_name = "BYTES", default_value_t = 8 << 30)]
    pub alarm_wal_bytes: u64,

    /// Seconds that what is served may be old before an alarm is raised
    #[arg(long, env = "FEEDMILL_ALARM_LAG_SECONDS", value_name = "SECONDS", default_value_t = 60)]
    pub alarm_lag_seconds: u64,

    /// Seconds between small writes into PostgreSQL's log that keep the slot moving; 0 for none: PostgreSQL's own
    /// keepalives move it too
    #[arg(long, env = "FEEDMILL_HEARTBEAT_SECONDS", value_name = "SECONDS", default_value_t = 0)]
    pub heartbeat_seconds: u64,

    /// Mebibytes of the disk that stay free: below that nothing more is taken from PostgreSQL, until there is room
    #[arg(long, env = "FEEDMILL_DISK_RESERVE_MB", value_name = "MB", default_value_t = 256)]
    pub disk_reserve_mb: u64,

    /// Kafka that `feedmill capture` publishes the change log to, and others read it from: kafka://one:9092,two:9092, or
    /// kafka://user:password@one:9093?tls=system&sasl=scram-sha-512. Of a password holds what is said of --database-url
    #[arg(long, env = "FEEDMILL_PUBLISH", value_name = "URL", hide_env_values = true)]
    pub publish: Option<String>,

    /// What the names of topics in Kafka begin with; of two logs in one Kafka each has its own
    #[arg(long, env = "FEEDMILL_TOPIC_PREFIX", value_name = "NAME", default_value = "feedmill")]
    pub topic_prefix: String,

    /// How changes are distributed over topics
    #[arg(long, env = "FEEDMILL_TOPIC_LAYOUT", value_name = "LAYOUT", value_enum, default_value_t = TopicLayout::Tables)]
    pub topic_layout: TopicLayout,

    /// Partitions of each topic; they cannot be changed afterwards
    #[arg(long, env = "FEEDMILL_TOPIC_PARTITIONS", value_name = "N", default_value_t = 4)]
    pub topic_partitions: u16,

    /// Copies that brokers keep of each topic that is made; 0 for as many as is their default
    #[arg(long, env = "FEEDMILL_TOPIC_REPLICATION", value_name = "N", default_value_t = 0)]
    pub topic_replication: u16,

    /// Hours for which Kafka keeps changes: who reads them may be away for so long
    #[arg(long, env = "FEEDMILL_TOPIC_RETENTION_HOURS", value_name = "HOURS", default_value_t = 168)]
    pub topic_retention_hours: u32,

    /// How records are compressed
    #[arg(
        long,
        env = "FEEDMILL_TOPIC_COMPRESSION",
        value_name = "CODEC",
        value_enum,
        default_value_t = TopicCompression::Lz4,
    )]
    pub topic_compression: TopicCompression,

    /// In which form records are written; either is read
    #[arg(long, env = "FEEDMILL_TOPIC_FORMAT", value_name = "FORMAT", value_enum, default_value_t = TopicFormat::Json)]
    pub topic_format: TopicFormat,

    /// Schema registry of records that are Avro, which speaks as Confluent's does: http(s)://user:password@host:port/path, of
    /// which user, password and path may be left out. Of a password holds what is said of --database-url
    #[arg(long, env = "FEEDMILL_REGISTRY", value_name = "URL", hide_env_values = true)]
    pub registry: Option<String>,

    /// What is logged to standard error, as `tracing` filters are written: info, feedmill=debug
    #[arg(
        long,
        env = "FEEDMILL_LOG",
        value_name = "FILTER",
        default_value = "info,fjall=warn,lsm_tree=warn,refinery_core=warn,scylla=off"
    )]
    pub log: String,

    /// How it is logged
    #[arg(long, env = "FEEDMILL_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// The search index in the data folder.
const LOCAL: &str = "local";

/// Where the search index lies.
#[derive(Clone, Debug)]
pub enum SearchPlace {
    /// In the data folder.
    Local,
    /// On a server.
    Elastic(Box<ElasticSettings>),
}

/// What to do on a mismatch of the database and what was read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMismatch {
    /// End, and say what was found and what mends it.
    Stop,
    /// Compare every row with the database as it is now, and take over the difference.
    Resync,
}

/// How changes are distributed over topics in Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicLayout {
    /// A topic a table, named as Debezium does: PREFIX.public.tweets
    Tables,
    /// tweets, tweet-interactions, user-interactions, user-events
    Subjects,
}

/// How records in Kafka are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicCompression {
    /// By LZ4: little work, for the brokers too.
    Lz4,
    /// By gzip: smaller.
    Gzip,
    /// By Zstandard: as small as by gzip, with less work.
    Zstd,
    /// Not at all.
    None,
}

/// In which form records in Kafka are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicFormat {
    /// JSON without schemas, as Debezium writes it with schemas.enable=false
    Json,
    /// Avro with a schema registry (--registry), as Debezium writes it with Confluent's converter
    Avro,
}

/// Form of the log's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Settings {
    /// Puts the file of `--config` between the defaults and what was given by flag or variable.
    pub fn resolve(self, matches: &ArgMatches) -> anyhow::Result<Settings> {
        let Some(file) = self.config.clone() else { return self.checked() };
        let all =
            Figment::from(Serialized::defaults(&self)).extract::<Dict>().context("could not read the settings")?;
        let given: Dict = all
            .iter()
            .filter(
                |(name, _)| matches!(matches.value_source(name), Some(source) if source != ValueSource::DefaultValue),
            )
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Figment::from(Serialized::defaults(all))
            .merge(Toml::file_exact(&file))
            .merge(Serialized::defaults(given))
            .extract::<Settings>()
            .with_context(|| format!("could not use the settings in {}", file.display()))?
            .checked()
    }

    fn checked(self) -> anyhow::Result<Settings> {
        anyhow::ensure!((1..=64).contains(&self.workers), "--workers is {}, but must be 1 to 64", self.workers);
        anyhow::ensure!(
            self.home_keep < self.home_max,
            "--home-keep is {}, but must be below --home-max, which is {}",
            self.home_keep,
            self.home_max
        );
        anyhow::ensure!(self.hot_followers > 0, "--hot-followers is 0, but must be at least 1");
        anyhow::ensure!(self.copy_connections > 0, "--copy-connections is 0, but must be at least 1");
        anyhow::ensure!(self.stream_heartbeat_ms > 0, "--stream-heartbeat-ms is 0, but must be at least 1");
        anyhow::ensure!(self.pool_size > 0, "--pool-size is 0, but must be at least 1");
        anyhow::ensure!(self.requests_max > 0, "--requests-max is 0, but must be at least 1");
        anyhow::ensure!(
            (1..=1_000_000).contains(&self.connections_max),
            "--connections-max is {}, but must be 1 to 1000000",
            self.connections_max
        );
        anyhow::ensure!(self.idle_seconds > 0, "--idle-seconds is 0, but must be at least 1");
        anyhow::ensure!(
            (0.0..=1.0).contains(&self.otlp_sample),
            "--otlp-sample is {}, but must be 0 to 1",
            self.otlp_sample
        );
        if let Some(endpoint) = &self.otlp_endpoint {
            anyhow::ensure!(
                endpoint.starts_with("http://"),
                "--otlp-endpoint must begin with http://: traces are sent to a collector on this machine or in this network"
            );
        }
        self.cors_origins()?;
        self.check_topics()?;
        self.search_place()?;
        self.cluster()?;
        anyhow::ensure!(
            (1..=1_440).contains(&self.access_minutes),
            "--access-minutes is {}, but must be 1 to 1440",
            self.access_minutes
        );
        anyhow::ensure!(
            (1..=3_650).contains(&self.session_days),
            "--session-days is {}, but must be 1 to 3650",
            self.session_days
        );
        Ok(self)
    }

    /// Where the search index lies.
    pub fn search_place(&self) -> anyhow::Result<SearchPlace> {
        if self.search == LOCAL {
            let ours = self.search_api_key.is_none() && self.search_authority.is_none();
            anyhow::ensure!(
                ours,
                "--search-api-key and --search-authority are of an Elasticsearch, and --search is {LOCAL}"
            );
            return Ok(SearchPlace::Local);
        }
        let address = self.search.parse::<ElasticAddress>();
        let address = address.with_context(|| format!("--search is neither {LOCAL} nor an address"))?;
        let once = !(address.has_password() && self.search_api_key.is_some());
        anyhow::ensure!(once, "--search has a password, and there is a --search-api-key too: leave one of them away");
        Ok(SearchPlace::Elastic(Box::new(ElasticSettings {
            api_key: self.search_api_key.clone(),
            authority: self.search_authority.clone(),
            ..ElasticSettings::new(address)
        })))
    }

    /// The settings of the API.
    pub fn api(&self) -> anyhow::Result<feedmill_api::Settings> {
        Ok(feedmill_api::Settings {
            read_wait: self.read_wait(),
            access: self.access(),
            session: self.session(),
            secure_cookies: self.secure_cookies,
            rate_limits: RateLimits {
                login_user: self.limit_login_user,
                login_name: self.limit_login_name,
                login_address: self.limit_login_address,
                register_address: self.limit_register_address,
                write_user: self.limit_write_user,
                write_address: self.limit_write_address,
                read_user: self.limit_read_user,
                read_address: self.limit_read_address,
                search_user: self.limit_search_user,
                search_address: self.limit_search_address,
                export_user: self.limit_export_user,
            },
            requests_max: self.requests_max,
            trusted_proxies: self.trusted_proxies.clone(),
            cors_origins: self.cors_origins()?,
            hsts: Duration::from_secs(self.hsts_seconds),
            streams_max: self.streams_max,
            streams_per_user_max: self.streams_per_user,
            stream_heartbeat: Duration::from_millis(self.stream_heartbeat_ms),
            stream_stall: Duration::from_millis(self.stream_stall_ms),
            ..feedmill_api::Settings::default()
        })
    }

    /// An origin is a scheme and a host, and nothing after it: one that is written otherwise would never be let in.
    fn cors_origins(&self) -> anyhow::Result<Vec<HeaderValue>> {
        let origin = |text: &String| {
            let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            let whole = rest.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', '*', ' ']));
            anyhow::ensure!(
                whole || (text == "*" && self.cors_origins.len() == 1),
                "--cors-origins has `{text}`, but takes origins such as https://app.example, without a path; or * alone"
            );
            HeaderValue::try_from(text).with_context(|| format!("--cors-origins has `{text}`, which is no origin"))
        };
        self.cors_origins.iter().map(origin).collect()
    }

    /// The settings that define the views.
    pub fn parameters(&self) -> Parameters {
        Parameters {
            fanout_days: self.fanout_days,
            active_days: self.active_days,
            hot_followers: self.hot_followers,
            bulk_rows: self.bulk_rows,
            home_max: self.home_max,
            home_keep: self.home_keep,
            following_max: self.following_max,
        }
    }

    /// Prints the settings in force as a file for `--config`.
    pub fn print(&self) -> anyhow::Result<()> {
        // A source is printed without its password.
        let shown = |url: &Option<String>| -> anyhow::Result<Option<String>> {
            Ok(url.as_deref().map(str::parse::<Source>).transpose()?.map(|source| source.to_string()))
        };
        let search = match self.search_place()? {
            SearchPlace::Local => LOCAL.to_owned(),
            SearchPlace::Elastic(elastic) => elastic.address.to_string(),
        };
        let settings = Settings {
            config: None,
            search,
            search_api_key: None,
            database_url: shown(&self.database_url)?,
            replica_url: shown(&self.replica_url)?,
            store: self.cluster()?.map(|cluster| cluster.to_string()),
            registry: self.registry_address()?.map(|registry| registry.to_string()),
            publish: self.publish.as_ref().map(|_| self.kafka_log()).transpose()?.map(|log| log.servers.address()),
            ..self.clone()
        };
        print!("{}", toml::to_string(&settings).context("could not print the settings")?);
        Ok(())
    }

    /// The flag that holds a password, if one does, so that the list of processes shows it.
    pub fn shows_password(&self, matches: &ArgMatches) -> Option<&'static str> {
        let urls =
            [("database_url", &self.database_url, "database-url"), ("replica_url", &self.replica_url, "replica-url")];
        let shows = |(name, url, _): &(&str, &Option<String>, _)| {
            let source = url.as_deref().map(str::parse::<Source>);
            matches.value_source(name) == Some(ValueSource::CommandLine)
                && std::env::var_os("PGPASSWORD").is_none()
                && matches!(source, Some(Ok(source)) if source.config().get_password().is_some())
        };
        let by_flag = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
        let of_cluster = || self.cluster().ok().flatten().is_some_and(|cluster| cluster.password.is_some());
        let others = [
            ("search", self.search.parse().is_ok_and(|address: ElasticAddress| address.has_password()), "search"),
            ("search_api_key", self.search_api_key.is_some(), "search-api-key"),
            ("store", of_cluster(), "store"),
            (
                "registry",
                self.registry_address().is_ok_and(|found| found.is_some_and(|known| known.has_password())),
                "registry",
            ),
            ("publish", self.kafka_log().is_ok_and(|log| log.servers.has_password()), "publish"),
        ];
        let other = others.into_iter().find(|(name, secret, _)| *secret && by_flag(name)).map(|(_, _, flag)| flag);
        urls.into_iter().find(shows).map(|(_, _, flag)| flag).or(other)
    }

    /// The cluster of `--store`.
    pub fn cluster(&self) -> anyhow::Result<Option<CqlSettings>> {
        let parsed = self.store.as_deref().map(str::parse::<CqlSettings>).transpose();
        parsed.context("--store cannot be used")
    }

    /// The file of the keys that sign tokens.
    pub fn key_file(&self) -> PathBuf {
        self.keys.clone().unwrap_or_else(|| self.data.join("keys"))
    }

    /// How old what is held of accounts and timelines may be.
    pub fn cache_ages(&self) -> CacheAges {
        CacheAges {
            profiles: Duration::from_secs(self.profile_cache_seconds),
            timelines: Duration::from_secs(self.timeline_cache_seconds),
        }
    }

    /// Stores that others fill, if both are named.
    pub fn others_stores(&self) -> anyhow::Result<Option<(Box<CqlSettings>, Box<ElasticSettings>)>> {
        let SearchPlace::Elastic(search) = self.search_place()? else { return Ok(None) };
        Ok(self.cluster()?.map(|store| (Box::new(store), search)))
    }

    /// [`Self::access_minutes`].
    pub fn access(&self) -> Duration {
        Duration::from_secs(self.access_minutes * 60)
    }

    /// [`Self::session_days`].
    pub fn session(&self) -> Duration {
        Duration::from_secs(self.session_days * 24 * 60 * 60)
    }

    /// [`Self::tail_minutes`].
    pub fn tail(&self) -> Duration {
        Duration::from_secs(self.tail_minutes * 60)
    }

    /// [`Self::read_wait_ms`].
    pub fn read_wait(&self) -> Duration {
        Duration::from_millis(self.read_wait_ms)
    }
}

/// `/var/lib/feedmill` for root, whose home PostgreSQL's own user could not enter; else the user's data folder.
fn default_data() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/feedmill");
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).or_else(home).unwrap_or_default().join("feedmill")
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 64))
}

/// More than a few gain nothing: they share the disk of one server.
fn default_copy_connections() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4))
}
