//! The addresses of this process, which must not become backends of its own pools: it would send to itself for ever.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

/// The addresses at which this process takes OTLP. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Own(Arc<BTreeSet<SocketAddr>>);

impl Own {
    /// The addresses of the listeners, as they are bound. An unspecified one (`0.0.0.0`, `[::]`) stands for all of the
    /// machine or container.
    pub fn new(listeners: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self(Arc::new(listeners.into_iter().collect()))
    }

    /// Returns whether what is sent to `address` arrives at one of the listeners.
    pub(super) fn has(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let is_at = |listener: &&SocketAddr| {
            let at = listener.ip().to_canonical();
            // [::] takes IPv4 as well.
            at == ip || (at.is_unspecified() && (at.is_ipv6() || ip.is_ipv4()) && is_local(ip))
        };
        self.0.iter().filter(|listener| listener.port() == address.port()).any(|listener| is_at(&listener))
    }
}

/// Returns whether the address is a loopback address or one of this machine's or container's interfaces.
fn is_local(ip: IpAddr) -> bool {
    // The system sends to an address of its own from that address. Nothing is sent here: connecting a UDP socket only
    // chooses the source address.
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((ip, 9))?;
        socket.local_addr()
    };
    ip.is_loopback() || source().is_ok_and(|source| source.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(listener: &str, address: &str) -> bool {
        Own::new([listener.parse().unwrap()]).has(address.parse().unwrap())
    }

    #[test]
    fn a_listener_is_found_under_the_addresses_it_listens_at() {
        assert!(own("127.0.0.5:4317", "127.0.0.5:4317") && own("127.0.0.5:4317", "[::ffff:127.0.0.5]:4317"));
        assert!(!own("127.0.0.5:4317", "127.0.0.7:4317"), "another process may listen there");
        assert!(!own("127.0.0.5:4317", "127.0.0.5:4318"));
        assert!(own("0.0.0.0:4317", "127.0.0.7:4317") && own("[::]:4317", "127.0.0.7:4317"));
        assert!(own("[::]:4317", "[::1]:4317") && !own("0.0.0.0:4317", "[::1]:4317"));
        // Documentation addresses (RFC 5737, RFC 3849), which no interface has.
        assert!(!own("0.0.0.0:4317", "192.0.2.1:4317") && !own("[::]:4317", "[2001:db8::1]:4317"));
        assert!(!Own::default().has("127.0.0.1:4317".parse().unwrap()));
    }

    #[test]
    fn the_address_of_an_interface_is_local() {
        // The source address towards a remote address is that of an interface, where there is a route at all.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        if socket.connect(("192.0.2.1", 9)).is_ok() {
            assert!(is_local(socket.local_addr().unwrap().ip()));
        }
    }
}
