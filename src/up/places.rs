//! Places for connections of clients: so many in all, and so many of one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use feedmill_api::network;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places. One address cannot take those of all others; a proxy that is trusted speaks for many, and can.
pub struct Places {
    all: Arc<Semaphore>,
    /// 0 for any number.
    of_address: usize,
    proxies: Vec<IpNet>,
    taken: Taken,
}

/// How many each address has, of IPv6 each /64.
type Taken = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A place, which is given back when this is dropped.
pub struct Place {
    _place: OwnedSemaphorePermit,
    counted: Option<(IpAddr, Taken)>,
}

impl Places {
    /// So many, and so many of one address that is not one of `proxies`.
    pub fn new(all: usize, of_address: usize, proxies: Vec<IpNet>) -> Self {
        Places { all: Arc::new(Semaphore::new(all)), of_address, proxies, taken: Taken::default() }
    }

    /// A place for a connection of `peer`, if there is one.
    pub fn take(&self, peer: IpAddr) -> Option<Place> {
        let place = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let peer = peer.to_canonical();
        if self.of_address == 0 || self.proxies.iter().any(|proxies| proxies.contains(&peer)) {
            return Some(Place { _place: place, counted: None });
        }
        let peer = network(peer);
        let mut taken = self.taken.lock();
        let taken_by_peer = taken.entry(peer).or_default();
        if *taken_by_peer == self.of_address {
            return None;
        }
        *taken_by_peer += 1;
        Some(Place { _place: place, counted: Some((peer, Arc::clone(&self.taken))) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((peer, taken)) = self.counted.take() else { return };
        let mut taken = taken.lock();
        if let Some(count) = taken.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_and_a_proxy_as_many_as_there_are() {
        let places = Places::new(6, 2, vec!["10.0.0.0/8".parse().unwrap()]);
        let take = |peer: &str| places.take(peer.parse().unwrap());
        let held = [take("192.0.2.1"), take("192.0.2.1")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("192.0.2.1").is_none() && take("::ffff:192.0.2.1").is_none());
        // A client of IPv6 has a network of addresses.
        let other = [take("2001:db8::1"), take("2001:db8::2")];
        assert!(other.iter().all(Option::is_some) && take("2001:db8::3").is_none());
        drop(held);
        let proxied = [take("10.0.0.1"), take("10.0.0.1"), take("::ffff:10.0.0.1"), take("10.0.0.1")];
        assert!(proxied.iter().all(Option::is_some));
        assert!(take("192.0.2.1").is_none(), "there are none left");
        drop((proxied, other));
        assert!(places.taken.lock().is_empty() && take("192.0.2.1").is_some());
    }

    #[test]
    fn zero_is_any_number() {
        let places = Places::new(3, 0, Vec::new());
        let held: Vec<_> = (0..4).map(|_| places.take("192.0.2.1".parse().unwrap())).collect();
        assert_eq!(held.iter().flatten().count(), 3);
    }
}
