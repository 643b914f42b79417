//! Connects to a backend by TCP, and performs the TLS handshake if the pool uses TLS.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{Failure, stream::Stream};
use crate::{
    access::Access,
    shortage::Shortage,
    tls::{self, Client, Reason, explain},
};

/// Timeout of a TCP connect, and of the TLS handshake after it. It is as long as a PING may stay unanswered (design 3,
/// Silence).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the peer's kernel may leave written bytes unacknowledged before the connection is given up. This detects a cut
/// cable on a busy connection, and together with keep-alive on an idle one.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Idle time before TCP sends a keep-alive probe. gRPC servers limit PINGs, but do not see these probes.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// Connects to the backend with this identity at `address`. If `access` has TLS, performs the handshake for the protocol
/// `alpn`.
pub(super) async fn dial(
    access: &Access,
    identity: &str,
    address: SocketAddr,
    alpn: &'static [u8],
) -> Result<Stream, Failure> {
    let stream = match timeout(CONNECT_TIMEOUT, connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "cannot connect");
            return Err(failure_of(&error, address));
        }
        Err(_elapsed) => return Err(Failure::ConnectTimeout),
    };
    let Some(client) = access.tls() else { return Ok(Stream::Plain(stream)) };
    handshake(client, stream, identity, address, alpn).await.map_err(|error| {
        if let Some(shortage) = Shortage::of(&error) {
            return Failure::Local(shortage);
        }
        let reason = Reason::of_io(&error);
        access.note_tls_failure(reason, address, &explain(&error));
        Failure::Tls(reason)
    })
}

async fn handshake(
    client: &Client,
    stream: TcpStream,
    identity: &str,
    address: SocketAddr,
    alpn: &'static [u8],
) -> io::Result<Stream> {
    let name = client.name_of(identity).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{identity} at {address} has no server name to verify"))
    })?;
    let connector = TlsConnector::from(client.current());
    let connected = connector.with_alpn(vec![alpn.to_vec()]).connect(name, stream);
    match timeout(CONNECT_TIMEOUT, connected).await {
        Ok(shaken) => shaken.map(Stream::tls),
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Classifies a connect that failed.
fn failure_of(error: &io::Error, address: SocketAddr) -> Failure {
    match Shortage::of(error) {
        // The kernel reports this error if all ports are in use, but also if this machine has no address of that family.
        Some(Shortage::Ports) if !has_source_for(address) => Failure::ConnectError,
        Some(shortage) => Failure::Local(shortage),
        None => match error.kind() {
            io::ErrorKind::ConnectionRefused => Failure::ConnectRefused,
            // The peer accepted the connection and reset it before the connect was polled.
            io::ErrorKind::ConnectionReset => Failure::ResetAtOnce,
            _ => Failure::ConnectError,
        },
    }
}

/// Whether this machine has a source address for `address`. Connecting a UDP socket chooses one and sends nothing.
fn has_source_for(address: SocketAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address)).is_ok()
}

/// Whether the peer at `address` answers a TLS ClientHello with a TLS record.
pub(in crate::dispatch) async fn speaks_tls(address: SocketAddr) -> bool {
    let asked = async {
        let mut stream = connect(address).await?;
        stream.write_all(&tls::hello()).await?;
        let mut first = [0; 2];
        stream.read_exact(&mut first).await?;
        io::Result::Ok(tls::is_record(first))
    };
    timeout(CONNECT_TIMEOUT, asked).await.is_ok_and(|answered| answered.unwrap_or(false))
}

/// Connects. The options are set afterwards: of a pool whose backends all refuse, that is half of the system calls.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    let reference = SockRef::from(&stream);
    reference.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE))?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    reference.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn local_shortages_are_distinguished_from_failures_of_the_backend() {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 4317));
        let of = |errno: Errno, address| failure_of(&errno.into(), address);
        assert_eq!(of(Errno::MFILE, here), Failure::Local(Shortage::Descriptors));
        assert_eq!(of(Errno::NOBUFS, here), Failure::Local(Shortage::Memory));
        assert_eq!(of(Errno::ADDRNOTAVAIL, here), Failure::Local(Shortage::Ports));
        // No machine has a source address for the broadcast address, so ports are not the reason.
        let nowhere = SocketAddr::from((Ipv4Addr::BROADCAST, 4317));
        assert_eq!(of(Errno::ADDRNOTAVAIL, nowhere), Failure::ConnectError);
        assert_eq!(of(Errno::CONNREFUSED, here), Failure::ConnectRefused);
        assert_eq!(of(Errno::CONNRESET, here), Failure::ResetAtOnce);
        assert_eq!(of(Errno::HOSTUNREACH, here), Failure::ConnectError);
    }
}
