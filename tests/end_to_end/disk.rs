//! A full disk.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::postgres::Postgres;
use crate::system::System;

/// A small disk, for as long as this lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, with the reason printed, where this process may not mount one.
    fn mount(at: &Path, mebibytes: u64) -> Option<SmallDisk> {
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk(at.to_owned())),
            failed => {
                eprintln!("skipped: a small disk cannot be mounted here: {failed:?}");
                None
            }
        }
    }

    fn free(&self) -> u64 {
        let disk = nix::sys::statvfs::statvfs(&self.0).unwrap();
        disk.blocks_available() * disk.fragment_size()
    }

    /// Takes all but `left` bytes.
    fn fill(&self, left: u64) -> PathBuf {
        let path = self.0.join("something-else");
        let mut file = File::create(&path).unwrap();
        let block = vec![1; 64 << 10];
        while self.free() > left + block.len() as u64 {
            file.write_all(&block).unwrap();
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The log takes nothing more before the disk is full; PostgreSQL and readers do not notice.
#[tokio::test(flavor = "multi_thread")]
async fn c15_a_full_disk_stops_the_intake_until_there_is_room() {
    let postgres = Postgres::new(&[]).await;
    let mut system = System::new(&["--disk-reserve-mb", "64"]);
    let Some(disk) = SmallDisk::mount(system.data(), 400) else { return };
    system.use_database(&postgres);
    system.go().await;
    let ada = system.register("ada").await;
    let (before, token) = system.tweet(&ada, "before").await;
    assert_eq!(system.home(&ada, Some(&token)).await, std::slice::from_ref(&before));

    let filler = disk.fill(48 << 20);
    let sql = postgres.sql().await;
    let author: i64 = ada.id.parse().unwrap();
    let insert = "INSERT INTO tweets (id, user_id, content, conversation_id)
                  SELECT id, $1, 'while the disk is full', id FROM (SELECT feedmill_id() FROM generate_series(1, $2::int)) AS made (id)";
    // Single transactions, and one that is large.
    for rows in [1, 1, 100_000] {
        sql.execute(insert, &[&author, &rows]).await.unwrap();
    }
    let waits = async |system: &System| system.metric("feedmill_log_waits_for_room").await == 1.0;
    system.until("the log waits for room", waits).await;
    system
        .until("health names the log and the reason", async |system| {
            let health = system.get("/health", None).await.body.to_string();
            health.contains("the disk is nearly full")
        })
        .await;
    let status = system.command(&["status"]).await;
    assert!(String::from_utf8(status.stdout).unwrap().contains("the disk is nearly full"));
    assert_eq!(system.home(&ada, None).await, std::slice::from_ref(&before), "what is there is served");
    let count = sql.query_one("SELECT count(*) FROM tweets", &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(count, 100_003, "PostgreSQL takes writes");
    let said = system.log().matches("Nothing more is taken from PostgreSQL until there is room").count();
    assert_eq!(said, 1, "it is said once\n{}", system.log());

    // A crash in this state changes nothing.
    system.kill();
    system.spawn().await.unwrap();
    system.until("the log waits for room", waits).await;
    std::fs::remove_file(filler).unwrap();
    system.until("it is ready", async |system| system.get("/ready", None).await.status == 200).await;
    system.until("the log goes on", async |system| system.metric("feedmill_log_waits_for_room").await == 0.0).await;
    let (after, token) = system.tweet(&ada, "after").await;
    assert_eq!(system.home(&ada, Some(&token)).await.first(), Some(&after));
    system.verified().await;
    drop(system);
}
