//! Stands between a store and its server, and loses answers.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

/// Passes bytes on in both directions, unless it is told to lose what the server answers.
pub struct Proxy {
    port: u16,
    loses: Arc<AtomicBool>,
    lost: Arc<AtomicU32>,
}

impl Proxy {
    /// To the server at this address.
    pub fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (loses, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let told = (loses.clone(), lost.clone());
        // It goes with the process of the tests.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(from, to, || true));
                let (loses, lost) = told.clone();
                let passes = move || {
                    let passes = !loses.load(Ordering::Acquire);
                    lost.fetch_add(u32::from(!passes), Ordering::AcqRel);
                    passes
                };
                thread::spawn(move || pass(server, client, passes));
            }
        });
        Proxy { port, loses, lost }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From now on the server hears everything, and a connection ends with its next answer, which nobody gets.
    pub fn lose_answers(&self) {
        self.loses.store(true, Ordering::Release);
    }

    /// Answers arrive again.
    pub fn pass_answers(&self) {
        self.loses.store(false, Ordering::Release);
    }

    /// How many were lost.
    pub fn lost(&self) -> u32 {
        self.lost.load(Ordering::Acquire)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, passes: impl Fn() -> bool) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if !passes() || to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // The other direction ends too; either may have ended already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
