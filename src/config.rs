//! The settings: one typed struct, of which flags, environment variables and the file are views.
//!
//! ```text
//!   default  <  file (--config, TOML)  <  FEEDMILL_… variable  <  flag
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use feedmill_connectors::postgres::Source;
use feedmill_model::Parameters;
use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use figment::value::Dict;
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

    /// Address to serve HTTP on
    #[arg(long, env = "FEEDMILL_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Dataflow workers (threads); the default leaves half of the cores to PostgreSQL
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

    /// Connections to PostgreSQL for the API
    #[arg(long, env = "FEEDMILL_POOL_SIZE", value_name = "N", default_value_t = 16)]
    pub pool_size: usize,

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

    /// What is logged to standard error, as `tracing` filters are written: info, feedmill=debug
    #[arg(
        long,
        env = "FEEDMILL_LOG",
        value_name = "FILTER",
        default_value = "info,fjall=warn,lsm_tree=warn,refinery_core=warn"
    )]
    pub log: String,

    /// How it is logged
    #[arg(long, env = "FEEDMILL_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
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
        anyhow::ensure!(self.pool_size > 0, "--pool-size is 0, but must be at least 1");
        Ok(self)
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
        let database_url = self.database_url.as_deref().map(str::parse::<Source>).transpose()?;
        // A source is printed without its password.
        let database_url = database_url.map(|source| source.to_string());
        let settings = Settings { config: None, database_url, ..self.clone() };
        print!("{}", toml::to_string(&settings).context("could not print the settings")?);
        Ok(())
    }

    /// Whether a flag holds a password, so that the list of processes shows it.
    pub fn shows_password(&self, matches: &ArgMatches) -> bool {
        let source = self.database_url.as_deref().map(str::parse::<Source>);
        matches.value_source("database_url") == Some(ValueSource::CommandLine)
            && std::env::var_os("PGPASSWORD").is_none()
            && matches!(source, Some(Ok(source)) if source.config().get_password().is_some())
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
