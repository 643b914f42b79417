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

/// The types of frames that an HTTP/2 server can begin with (RFC 9113, 6.5 and 6.8).
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// The longest SETTINGS frame that is taken for one: servers send a dozen settings at most.
const MAX_SETTINGS: u32 = 6 * 32;

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
    first_of_answer(address, &tls::hello()).await.is_some_and(tls::is_record)
}

/// Whether the peer at `address` answers a request of HTTP/1.1.
pub(in crate::dispatch) async fn speaks_http1(address: SocketAddr) -> bool {
    let request = format!("HEAD / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    first_of_answer(address, request.as_bytes()).await.is_some_and(|first| first == *b"HTTP/1.")
}

/// Whether the peer at `address` answers the preface of HTTP/2.
pub(in crate::dispatch) async fn speaks_http2(address: SocketAddr) -> bool {
    // The preface and an empty SETTINGS frame (RFC 9113, 3.4).
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    first_of_answer(address, preface).await.is_some_and(begins_http2)
}

/// Whether the head of a frame is that of the first frame of an HTTP/2 server: SETTINGS, or GOAWAY.
pub(super) fn begins_http2(head: [u8; 9]) -> bool {
    let [len @ .., kind, flags, a, b, c, d] = head;
    let len = len.into_iter().fold(0, |len, byte| len << 8 | u32::from(byte));
    let is_first = match kind {
        SETTINGS => len.is_multiple_of(6) && len <= MAX_SETTINGS,
        GOAWAY => len >= 8,
        _ => false,
    };
    is_first && flags == 0 && [a, b, c, d] == [0; 4]
}

/// Connects, writes `question`, and returns the first bytes of the answer; `None` if there are too few.
async fn first_of_answer<const LEN: usize>(address: SocketAddr, question: &[u8]) -> Option<[u8; LEN]> {
    let asked = async {
        let mut stream = connect(address).await?;
        stream.write_all(question).await?;
        let mut first = [0; LEN];
        stream.read_exact(&mut first).await?;
        io::Result::Ok(first)
    };
    timeout(CONNECT_TIMEOUT, asked).await.ok()?.ok()
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
