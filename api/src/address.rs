//! From where a request comes.
//!
//! ```text
//!   client ─► proxies that are trusted ─► peer of the connection
//!             each adds to X-Forwarded-For behind whom it speaks for
//! ```

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName};
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The network that is one client's: of IPv6 64 bits, of IPv4 the address.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// From where a request comes, as far as it is known.
#[derive(Clone, Copy)]
struct ClientAddress(IpAddr);

/// Finds out from where a request comes, and notes it.
pub(crate) fn note_address(request: &mut Request, trusted: &[IpNet]) -> IpAddr {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(peer)| peer.ip().to_canonical());
    let address = forwarded_for(peer, request.headers(), trusted);
    request.extensions_mut().insert(ClientAddress(address));
    address
}

/// The network of the address that [`note_address`] has found.
pub(crate) fn client_network(extensions: &Extensions) -> IpAddr {
    network(extensions.get().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ClientAddress(address)| *address))
}

/// From which network a request comes.
pub(crate) struct ClientNetwork(pub IpAddr);

impl<S: Sync> FromRequestParts<S> for ClientNetwork {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(ClientNetwork(client_network(&parts.extensions)))
    }
}

/// Each proxy adds behind whom it speaks for, so the list is read from its end, and believed as far as proxies that are
/// trusted have written it. What stands before may be made up.
fn forwarded_for(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let mut address = peer;
    let lines = headers.get_all(FORWARDED_FOR).iter().map(|line| line.to_str().unwrap_or("?"));
    let mut hops: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    while is_trusted(address) {
        let Some(hop) = hops.pop() else { break };
        let parsed = hop.parse().or_else(|_| hop.parse().map(|with_port: SocketAddr| with_port.ip()));
        let Ok(parsed) = parsed else { break };
        address = IpAddr::to_canonical(&parsed);
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_forwarded_is_believed_from_trusted_proxies_alone() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap()).into();
        for (peer, forwarded, expected) in [
            ("192.0.2.1", &["198.51.100.7"][..], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["6.6.6.6, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["6.6.6.6, 198.51.100.7, 10.2.3.4"], "198.51.100.7"),
            ("10.0.0.1", &["6.6.6.6", "198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["198.51.100.7:4711"], "198.51.100.7"),
            ("fd00::1", &["[2001:db8::7]:4711"], "2001:db8::7"),
            ("10.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["6.6.6.6, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            for line in forwarded {
                headers.append(FORWARDED_FOR, line.parse().unwrap());
            }
            let [peer, expected] = addresses(&format!("{peer} {expected}"))[..] else { unreachable!() };
            assert_eq!(forwarded_for(peer, &headers, &trusted), expected, "{forwarded:?} by {peer}");
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let [a, b, c] = addresses("2001:db8:1:2::1 2001:db8:1:2:ffff::9 2001:db8:1:3::1")[..] else { unreachable!() };
        assert_eq!(network(a), network(b));
        assert_ne!(network(a), network(c));
    }
}
