//! What the stores hold after writes that were lost, written twice, or replayed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use feedmill_model::Lsn;
use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;

use super::workload::{PEOPLE, Writer};
use crate::postgres::Postgres;
use crate::system::System;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Follows of one transaction: more rows than a store takes in one write, so that its progress comes with the last.
const FOLLOWS: u64 = 39_800;
const FOLLOW_ALL: &str = "
    INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(1, 200) AS n;
    INSERT INTO users (id, username, display_name) SELECT n, 'u' || n, '' FROM generate_series(1, 200) AS n;
    INSERT INTO follows (follower_id, following_id) SELECT one, other FROM generate_series(1, 200) AS one,
        generate_series(1, 200) AS other WHERE one <> other";

#[tokio::test(flavor = "multi_thread")]
async fn c44_a_write_whose_progress_was_lost_is_written_again_with_the_same_result() {
    let mut system = System::new(&["--workers", "1"]);
    system.failpoints = Some("sink_write_part_after=return".to_owned());
    system.go().await;
    system.sql().await.batch_execute(FOLLOW_ALL).await.unwrap();
    let is_dead = async |system: &System| !system.is_running();
    system.until("it died between a write and its progress", is_dead).await;
    assert_eq!(system.wait().signal(), Some(Signal::SIGKILL as i32));
    // Once more: the first part is then there already, and counts that it added must not be added again.
    system.spawn().await.unwrap();
    system.until("it died there again", is_dead).await;
    system.wait();
    system.failpoints = None;
    system.go().await;
    for user in ["u1", "u100", "u200"] {
        let body = system.get(&format!("/api/users/{user}"), None).await.body;
        let counts = &body.get("user").unwrap_or(&body)["counts"];
        assert_eq!((&counts["followers"], &counts["following"]), (&199.into(), &199.into()), "{user}");
    }
    let printed = system.verified().await;
    let followers = printed.lines().find(|line| line.starts_with("followers ")).unwrap();
    assert!(followers.contains(&format!(" {FOLLOWS} ")), "{printed}");
}

/// The newest journal of a store, whose end is what a crash of the machine loses.
fn journal(store: &Path) -> PathBuf {
    let journals = fs::read_dir(store).unwrap().flatten().map(|entry| entry.path());
    let number = |path: &PathBuf| path.file_stem().and_then(|name| name.to_str()?.parse::<u64>().ok());
    let journals = journals.filter(|path| path.extension().is_some_and(|extension| extension == "jnl"));
    journals.max_by_key(number).expect("there is a journal")
}

/// How far facts and rows are on disk, as the process says.
async fn saved(system: &System) -> Option<Lsn> {
    let health = system.get("/health", None).await.body;
    let stages = health["stages"].as_array()?;
    let saved = |name: &str| stages.iter().find(|stage| stage["name"] == name)?["saved"].as_str()?.parse().ok();
    Some(Lsn::min(saved("facts")?, saved("rows")?))
}

async fn wal_end(sql: &tokio_postgres::Client) -> Lsn {
    let end: String = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    end.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn c45_what_the_log_drops_is_durable_in_the_stores_so_a_loss_of_unsynced_writes_harms_nothing() {
    let postgres = Postgres::new(&[]).await;
    // The log drops at once whatever it may.
    let mut system = System::start_on(&postgres, &["--tail-minutes", "0", "--workers", "2"]).await;
    let sql = postgres.sql().await;
    sql.batch_execute(PEOPLE).await.unwrap();
    let mut writer = Writer::new(&postgres);
    let mut rng = ChaCha8Rng::seed_from_u64(45);
    let index = system.data().join("index");
    for kept_percent in [0, 60] {
        let (synced, lost) = loop {
            writer.write_some(&mut rng, 40).await;
            let end = wal_end(&sql).await;
            system.until("all so far is on disk", async |system| saved(system).await >= Some(end)).await;
            let at = saved(&system).await;
            let newest = journal(&index);
            let synced = fs::read(&newest).unwrap();
            writer.write_some(&mut rng, 60).await;
            let end = wal_end(&sql).await;
            let applied = async |system: &System| {
                let health = system.get("/health", None).await.body;
                let rows = health["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == "rows");
                rows.and_then(|rows| rows["lsn"].as_str()?.parse::<Lsn>().ok()) >= Some(end)
            };
            system.until("the stores have it", applied).await;
            // Were it synced meanwhile, nothing of it could be lost.
            if saved(&system).await == at {
                system.kill();
                if journal(&index) == newest {
                    break (synced, fs::read(newest).unwrap());
                }
                system.go().await;
            }
        };
        let differs = |(one, other): (&u8, &u8)| one != other;
        let first = synced.iter().zip(&lost).position(differs).unwrap_or(synced.len());
        let last = lost.iter().rposition(|byte| *byte != 0).unwrap();
        assert!(first < last, "nothing was written that could be lost");
        let kept = first + (last - first) * kept_percent / 100;
        let torn = [&lost[..kept], &vec![0; lost.len() - kept]].concat();
        fs::write(journal(&index), torn).unwrap();
        system.go().await;
        system.verified().await;
    }
}

/// Everything that a store has on disk, but for progress, which depends on the number of workers: key and value by
/// keyspace. Sums that are zero may be there or not.
fn contents(store: &Path) -> BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>> {
    let database = fjall::Database::builder(store).open().unwrap();
    let names = database.list_keyspace_names();
    let names = names.into_iter().map(|name| name.to_string()).filter(|name| name != "state");
    let rows = |name: String| {
        let keyspace = database.keyspace(&name, fjall::KeyspaceCreateOptions::default).unwrap();
        let pairs = keyspace.iter().map(|row| row.into_inner().unwrap());
        let pairs = pairs.map(|(key, value)| (key.to_vec(), value.to_vec()));
        let rows = pairs.filter(|(_, value)| name != "counts" || value[..8] != [0; 8]).collect();
        (name, rows)
    };
    names.map(rows).collect()
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn c46_replays_write_identical_keys_times_and_values_with_any_number_of_workers() {
    let mut postgres = Postgres::new(&[]).await;
    // Nobody is ever popular, so a replay writes nothing to PostgreSQL.
    let mut system = System::start_on(&postgres, &["--hot-followers", "1000000", "--workers", "2"]).await;
    let mut writer = Writer::new(&postgres);
    writer.run(PEOPLE).await;
    let mut rng = ChaCha8Rng::seed_from_u64(46);
    writer.write_some(&mut rng, 50).await;
    system.verified().await;
    system.interrupt();
    // The stores at an early time, the log at a late one: what lies between is replayed.
    let backups = tempfile::TempDir::new().unwrap();
    let stores = ["index", "home", "search"].into_iter().filter(|store| system.data().join(store).exists());
    let stores: Vec<&str> = stores.collect();
    stores.iter().for_each(|store| copy(&system.data().join(store), &backups.path().join(store)));
    system.go().await;
    writer.write_some(&mut rng, 250).await;
    system.verified().await;
    let live = system.data().join("index");
    system.interrupt();
    let written_live = contents(&live);
    copy(&system.data().join("log"), &backups.path().join("log"));
    drop(writer);
    postgres.stop_fast();
    let source = postgres.backup();
    for workers in ["1", "2", "4"] {
        postgres.restore(&source);
        postgres.start().await;
        for folder in stores.iter().chain([&"log"]) {
            copy(&backups.path().join(folder), &system.data().join(folder));
        }
        let at = system.settings.iter().position(|setting| setting == "--workers").unwrap();
        workers.clone_into(&mut system.settings[at + 1]);
        system.go().await;
        system.verified().await;
        system.interrupt();
        let replayed = contents(&live);
        assert!(replayed.values().map(BTreeMap::len).sum::<usize>() > 500);
        for (keyspace, rows) in &replayed {
            assert!(*rows == written_live[keyspace], "{keyspace} differs, replayed by {workers} workers");
        }
        postgres.stop_fast();
    }
    postgres.start().await;
}
