//! `feedmill import`: users, follows, tweets and likes from CSV files into PostgreSQL.
//!
//! ```text
//!   files ── parse ──► staged_* (temporary tables) ── check, mint ──► ready_* ── transactions ──► the relations
//!              │                                        │                │
//!              └─────────── bad lines ◄─────────────────┘        imports(name, shift_ms)
//! ```
//!
//! Why running it again changes nothing, also after a crash at any point:
//! - How far times are shifted is committed before the first row, and every later run under the same name reads it.
//! - Ids that are minted depend on nothing but the files and that shift. They are written (`imported_tweets`) in the
//!   transaction of the tweets they stand for, and a later run takes them from there.
//! - Each transaction inserts only what is not there, so the ones that were committed before the crash do nothing.
//! - Runs under one name exclude each other by an advisory lock. A run that died leaves it once PostgreSQL notices.
//!
//! Nothing is written before all lines of all files were checked: without `--skip-bad` a file with bad lines changes
//! nothing at all. Temporary tables are not in the log, so staging costs the replication slot nothing.

mod check;
mod file;
mod mint;
mod report;
mod stage;
mod tweets;
mod write;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::{ArgGroup, Args};
use feedmill_connectors::postgres::Source;
use tokio_postgres::Client;

use self::file::Kind;
use self::report::Report;
use crate::exclusion::exclude_others;

/// What `feedmill import` takes beside the settings.
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("files").required(true).multiple(true).args(["users", "follows", "tweets", "likes"])))]
pub struct ImportArgs {
    /// Users: id,username,display_name,created_at_ms and, if known, email
    #[arg(long, value_name = "FILE")]
    pub users: Option<PathBuf>,

    /// Follows: follower,following and, if known, created_at_ms; alone it also makes the users it names, as u and the id
    #[arg(long, value_name = "FILE")]
    pub follows: Option<PathBuf>,

    /// Tweets: id,user_id,content,created_at_ms and, for replies, reply_to_id
    #[arg(long, value_name = "FILE")]
    pub tweets: Option<PathBuf>,

    /// Likes: user_id,tweet_id,created_at_ms
    #[arg(long, value_name = "FILE")]
    pub likes: Option<PathBuf>,

    /// Shift all times so that the newest in the files is now; later runs under the same name shift alike
    #[arg(long)]
    pub until_now: bool,

    /// Name of the import, under which its shift and its tweets' ids are kept [default: the folder of the files]
    #[arg(long)]
    pub name: Option<String>,

    /// Do not count the imported users as active: they get no pushed timeline until they come
    #[arg(long)]
    pub inactive: bool,

    /// Leave bad lines out and go on, instead of importing nothing
    #[arg(long)]
    pub skip_bad: bool,
}

impl ImportArgs {
    /// The files given, in the order in which their rows refer to each other.
    fn files(&self) -> Vec<(Kind, &Path)> {
        let all = [
            (Kind::Users, &self.users),
            (Kind::Tweets, &self.tweets),
            (Kind::Follows, &self.follows),
            (Kind::Likes, &self.likes),
        ];
        all.into_iter().filter_map(|(kind, path)| Some((kind, path.as_deref()?))).collect()
    }

    /// Whether the users are those that the follows name.
    fn follows_alone(&self) -> bool {
        self.follows.is_some() && self.users.is_none() && self.tweets.is_none() && self.likes.is_none()
    }

    fn import_name(&self) -> anyhow::Result<String> {
        if let Some(name) = &self.name {
            ensure!(!name.trim().is_empty(), "--name is empty");
            return Ok(name.clone());
        }
        let mut folders = Vec::new();
        for (_, path) in self.files() {
            let path = path.canonicalize().with_context(|| format!("could not find {}", path.display()))?;
            ensure!(
                path.is_file(),
                "{} is not a file with a folder of its own: name the import by --name",
                path.display()
            );
            folders.push(path.parent().map(Path::to_path_buf).unwrap_or_default());
        }
        folders.dedup();
        match folders.as_slice() {
            [folder] => match folder.file_name() {
                Some(name) => Ok(name.to_string_lossy().into_owned()),
                None => bail!("the files lie in {}: name the import by --name", folder.display()),
            },
            _ => bail!("the files lie in different folders: name the import by --name"),
        }
    }
}

/// Imports the files into the database that `source` describes, and prints what became of their rows.
pub async fn run(args: ImportArgs, source: Source) -> anyhow::Result<()> {
    let started = Instant::now();
    let name = args.import_name()?;
    let mut client = source.connect("feedmill import").await?;
    prepare(&client, &name).await?;
    let files = args.files();
    let from_follows = args.follows_alone();
    // Users that are made for the follows stand on the follows' lines.
    let users = args.follows.as_deref().filter(|_| from_follows).map(|path| (Kind::Users, path));
    let mut report = Report::new(&users.into_iter().chain(files.iter().copied()).collect::<Vec<_>>());

    stage::read(&client, &files, &mut report).await?;
    let record = recorded(&client, &name).await?;
    let shift_ms = match &record {
        Some(record) => {
            ensure!(
                !args.until_now || record.shift_ms != 0 || stage::newest_ms(&client).await?.is_none(),
                "the import `{name}` was begun without --until-now, so its times stay as they are: leave --until-now out, \
                 or give it another --name"
            );
            record.shift_ms
        }
        None if args.until_now => match stage::newest_ms(&client).await? {
            Some(newest) => jiff::Timestamp::now().as_millisecond() - newest,
            None => 0,
        },
        None => 0,
    };

    check::users(&client, from_follows, shift_ms, &mut report).await?;
    check::follows(&client, shift_ms, &mut report).await?;
    check::tweets(&client, shift_ms, &mut report).await?;
    tweets::mint(&client, &name, shift_ms, &mut report).await?;
    check::likes(&client, shift_ms, &mut report).await?;
    if report.bad() > 0 && !args.skip_bad {
        bail!("{} bad lines, so nothing was imported: mend them, or leave them out with --skip-bad", report.bad());
    }

    if record.is_none() {
        let inserted = "INSERT INTO imports (name, shift_ms) VALUES ($1, $2)";
        client.execute(inserted, &[&name, &shift_ms]).await.with_context(|| format!("could not record `{name}`"))?;
    }
    let record =
        recorded(&client, &name).await?.with_context(|| format!("the import `{name}` is no longer recorded"))?;
    write::all(&mut client, &name, &record, !args.inactive, &mut report).await?;
    report.print(started.elapsed());
    let lost = report.lost();
    ensure!(lost == 0 || args.skip_bad, "{lost} rows could not be inserted because the database changed meanwhile");
    Ok(())
}

/// What `imports` holds of an import.
struct Record {
    /// By how much its times are shifted.
    shift_ms: i64,
    /// When it was begun, in microseconds since 1970: the time of what has none in the files.
    begun_micros: i64,
}

async fn recorded(client: &Client, name: &str) -> anyhow::Result<Option<Record>> {
    let query = "SELECT shift_ms, feedmill_micros(created_at) FROM imports WHERE name = $1";
    let row = client.query_opt(query, &[&name]).await.context("could not read the table imports")?;
    Ok(row.map(|row| Record { shift_ms: row.get(0), begun_micros: row.get(1) }))
}

/// Makes sure that the schema is there, and that no other import goes on under the name.
async fn prepare(client: &Client, name: &str) -> anyhow::Result<()> {
    let there: bool = client
        .query_one("SELECT to_regclass('imported_tweets') IS NOT NULL", &[])
        .await
        .context("could not look for Feedmill's tables")?
        .get(0);
    ensure!(
        there,
        "the database has no tables of this version of Feedmill: start `feedmill up` first, which makes them"
    );
    exclude_others(client, &format!("import {name}")).await
}
