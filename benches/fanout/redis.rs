//! What a timeline cache does without a log: an `LPUSH` for each follower, pipelined by batch, on one connection.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::{Args, Figures};

/// Redis takes its time: this many deliveries tell its rate.
const DELIVERIES: u64 = 3_000_000;

struct Server {
    process: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start() -> anyhow::Result<(Server, redis::Connection)> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("redis.sock");
    let process = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn()
        .context("could not start redis-server; `make bench` installs it")?;
    let server = Server { process, _folder: folder };
    let client = redis::Client::open(format!("redis+unix://{}", socket.display()))?;
    let asked = Instant::now();
    loop {
        match client.get_connection() {
            Ok(connection) => return Ok((server, connection)),
            Err(error) if asked.elapsed() > Duration::from_secs(10) => {
                return Err(error).context("redis does not answer");
            }
            Err(_) => std::thread::yield_now(),
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<Figures> {
    let (server, mut connection) = start()?;
    let mut followers: Vec<Vec<i64>> = vec![Vec::new(); usize::try_from(args.authors())?];
    for user in 0..args.users {
        for n in 0..args.follows {
            if let Some(list) = followers.get_mut(usize::try_from(args.followed(user, n))?) {
                list.push(user);
            }
        }
    }
    let mut figures = Figures::default();
    let started = Instant::now();
    let mut post = 0;
    while figures.deliveries < DELIVERIES {
        let mut pipeline = redis::pipe();
        for _ in 0..args.posts {
            for follower in followers.get(usize::try_from(args.author(post))?).into_iter().flatten() {
                pipeline.lpush(follower, post).ignore();
                figures.deliveries += 1;
            }
            post += 1;
        }
        pipeline.query::<()>(&mut connection).context("redis refused a batch")?;
    }
    figures.took = started.elapsed();
    drop(server);
    Ok(figures)
}
