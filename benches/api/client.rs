//! A client of HTTP/1.1 on this machine, which costs little beside the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use axum::Router;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::world::World;
use crate::{Args, TIMELINE};

/// Where a server listens.
pub struct Client {
    address: SocketAddr,
}

impl Client {
    /// Serves `app` for as long as the process lives.
    pub async fn serve(app: Router) -> anyhow::Result<Client> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Client { address })
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

async fn read(connection: &mut SendRequest<Empty<Bytes>>, token: &str) -> anyhow::Result<()> {
    let request = hyper::Request::get(TIMELINE).header("host", "bench").header("authorization", token);
    connection.ready().await?;
    let response = connection.send_request(request.body(Empty::new())?).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "{TIMELINE} answered {status}: {}", String::from_utf8_lossy(&body));
    Ok(())
}

/// Viewers, spread over all.
fn viewers(args: &Args, of: usize) -> impl Iterator<Item = i64> + use<> {
    let (users, step, first) =
        (args.users, i64::try_from(args.connections).unwrap_or(1), i64::try_from(of).unwrap_or(0));
    (0..).map(move |n| ((first + n * step) * 7_919) % users)
}

/// Each connection asks again when it is answered.
pub async fn closed_loop(
    server: &Client,
    world: &World,
    args: &Args,
    time: Duration,
) -> anyhow::Result<(f64, Histogram<u64>)> {
    let mut connections = JoinSet::new();
    for of in 0..args.connections {
        let mut connection = server.connect().await?;
        let tokens = viewers(args, of).take(2_000).map(|viewer| world.token(viewer)).collect::<Result<Vec<_>, _>>()?;
        connections.spawn(async move {
            let mut times = Histogram::<u64>::new(3)?;
            let began = Instant::now();
            for token in tokens.iter().cycle() {
                let asked = Instant::now();
                read(&mut connection, token).await?;
                times.record(u64::try_from(asked.elapsed().as_micros())?)?;
                if began.elapsed() > time {
                    break;
                }
            }
            anyhow::Ok(times)
        });
    }
    together(connections, time).await
}

/// Reads come at a rate, whether those before were answered or not; each counts from when it was due.
pub async fn open_loop(
    server: &Client,
    world: &World,
    args: &Args,
    time: Duration,
) -> anyhow::Result<(f64, Histogram<u64>)> {
    let mut connections = JoinSet::new();
    let pause = Duration::from_secs_f64(args.connections as f64 / args.reads as f64);
    let start = Instant::now();
    for of in 0..args.connections {
        let mut connection = server.connect().await?;
        let tokens = viewers(args, of).take(500).map(|viewer| world.token(viewer)).collect::<Result<Vec<_>, _>>()?;
        let tokens: Arc<[String]> = tokens.into();
        connections.spawn(async move {
            let mut times = Histogram::<u64>::new(3)?;
            let first = start + pause.mul_f64(of as f64 / 16.0);
            for (n, token) in (0_u32..).zip(tokens.iter().cycle()) {
                let due = first + pause * n;
                if due > start + time {
                    break;
                }
                tokio::time::sleep_until(due.into()).await;
                read(&mut connection, token).await?;
                times.record(u64::try_from(due.elapsed().as_micros())?)?;
            }
            anyhow::Ok(times)
        });
    }
    together(connections, time).await
}

async fn together(
    mut connections: JoinSet<anyhow::Result<Histogram<u64>>>,
    time: Duration,
) -> anyhow::Result<(f64, Histogram<u64>)> {
    let mut all = Histogram::<u64>::new(3)?;
    while let Some(times) = connections.join_next().await {
        all.add(times?.context("a connection of the client failed")?)?;
    }
    Ok((all.len() as f64 / time.as_secs_f64(), all))
}
