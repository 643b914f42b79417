//! Binds the ports of the process. This happens at its start, before it serves any of them.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The number of connections that the kernel queues until they are accepted: tokio's default. Linux usually caps it at
/// 4096.
const BACKLOG: u32 = 1024;
/// TCP keepalive: the idle time before the first probe, the interval of the probes and their number. They detect a dead
/// peer within 90 s, and keep a connection in NAT tables that drop idle connections after a minute.
const KEEPALIVE_TIME: Duration = Duration::from_secs(45);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;

/// A listener whose port is bound, but which does not accept connections yet.
#[derive(Debug)]
pub struct Bound {
    pub(super) name: &'static str,
    address: SocketAddr,
    pub(super) socket: TcpListener,
}

/// The reason why a port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {advice}")]
pub struct BindError {
    address: SocketAddr,
    advice: &'static str,
    source: io::Error,
}

/// Binds a port. `name` is the value of the metric label `listener`.
///
/// `[::]` serves IPv4 too if the system is configured to do so, which is the default of Linux.
pub fn bind(name: &'static str, address: SocketAddr) -> Result<Bound, BindError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted process must not have to wait for connections of its predecessor to time out.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let socket = socket.listen(BACKLOG)?;
        let address = socket.local_addr()?;
        Ok(Bound { name, address, socket })
    };
    listen().map_err(|source: io::Error| BindError { address, advice: advice(&source), source })
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process has this port: stop it, or choose another endpoint",
        io::ErrorKind::AddrNotAvailable => "this machine has no such address: use one of its own, 0.0.0.0 or [::]",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one",
        _ => "choose another endpoint",
    }
}

// === impl Bound ===

impl Bound {
    /// Returns the address that it listens on. If port 0 was requested, it has the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Sets the options of an accepted connection.
pub(super) fn set_options(stream: &TcpStream) -> io::Result<()> {
    // Replies are small and complete when they are written, so waiting for more data only delays them.
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_for_a_taken_port_names_it_and_says_what_to_do() {
        let taken = bind("test", SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let error = bind("test", taken.address()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on {}", taken.address())), "{error}");
        assert!(error.ends_with("another process has this port: stop it, or choose another endpoint"), "{error}");
    }
}
