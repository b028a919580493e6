//! A network between Feedmill and PostgreSQL that a test can make stall or lose.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    Forwards,
    /// Nothing arrives, and nobody is told: connections stay open at both ends.
    Stalls,
}

/// Forwards connections to a port of this machine.
pub struct Proxy {
    /// Where to connect to.
    pub port: u16,
    network: watch::Sender<Network>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A network that works.
    pub async fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (network, _) = watch::channel(Network::Forwards);
        let states = network.clone();
        let listening = listener.local_addr().unwrap().port();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (there, back) = (states.subscribe(), states.subscribe());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await else {
                        return;
                    };
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    // One direction that ends takes the other with it.
                    tokio::select! {
                        () = forward(from_client, to_server, there) => {}
                        () = forward(from_server, to_client, back) => {}
                    }
                });
            }
        });
        Proxy { port: listening, network, accepting }
    }

    /// From now on nothing arrives, in either direction, of old and new connections.
    pub fn stall(&self) {
        self.network.send_replace(Network::Stalls);
    }

    /// What was under way arrives, and what follows.
    pub fn go_on(&self) {
        self.network.send_replace(Network::Forwards);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// While it stalls it does not even notice that an end has closed: so the other is not told.
async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut network: watch::Receiver<Network>) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let forwards = network.wait_for(|network| *network == Network::Forwards).await.is_ok();
        if !forwards {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut bytes) => read.unwrap_or(0),
            _ = network.changed() => continue,
        };
        if network.wait_for(|network| *network == Network::Forwards).await.is_err() || read == 0 {
            return;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
