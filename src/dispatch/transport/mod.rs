//! The transport: calls to one backend, by gRPC over HTTP/2 or by OTLP/HTTP over HTTP/1.1.
//!
//! [`serve`] runs one connection from the attempt to connect until its end. It gets calls from an implementation of [`Work`],
//! and reports to it the result of each call and the events of the connection. This module knows nothing of queues, requests,
//! tables or metrics, and imports nothing from the rest of dispatch.
//!
//! - Connection: `dialer` opens the socket (`stream`) and performs the TLS handshake, `client` begins HTTP/2. `driver` is the
//!   task of the connection and all its calls. `wakeups` tells it what it was woken for, `clock` is its timer, and `silence`
//!   decides when a backend that sends nothing gets a PING, is probed, or is given up.
//! - Calls: `call` sends one RPC. `body` builds its body, `reply` reads the answer, and `outcome` classifies it.
//!   `orphan` keeps a call open after its clients have left.
//! - Bytes: `wire` gathers what HTTP/2 writes, `outgoing` keeps it without copies, and `frames` cuts it to the frame size that
//!   the backend accepts.
//! - `probe` asks a backend on a separate connection whether it is alive.
//! - `http1` is all of that for OTLP/HTTP, with the same `dialer`, `body` and `outcome`.

mod body;
mod call;
mod client;
mod clock;
mod dialer;
mod driver;
mod frames;
mod http1;
mod orphan;
mod outcome;
mod outgoing;
mod probe;
mod reply;
mod silence;
mod stream;
#[cfg(test)]
mod tests;
mod wakeups;
mod wire;
mod work;

use tokio::sync::Semaphore;

pub(super) use self::{
    dialer::{speaks_http1, speaks_http2, speaks_tls},
    outcome::{Partial, Scope, Verdict},
    wakeups::{GIVE_UP, MAX_PLACES, QUEUE, Wakeups},
    work::{Contents, Event, Peer, Work},
};
use self::{driver::Driver, http1::Session};
pub use self::{outcome::Failure, probe::HealthCheck};
use crate::lifecycle::Tasks;

/// The number of connections that the process makes at the same time; further ones wait for their turn, which does not
/// count as time of the connect. It bounds the sockets and handshakes when thousands of backends are tried at once. Probes
/// have a bound of their own.
const CONNECTS: usize = 512;

/// A new connection.
enum Connected {
    Http1(Box<http1::Connected>),
    Http2(Box<client::Connected>),
}

static TURNS: Semaphore = Semaphore::const_new(CONNECTS);

/// Connects to the backend of `work` and serves it until the connection ends or `tasks` are stopped.
pub(super) async fn serve<W: Work>(mut work: W, tasks: Tasks) {
    let peer = work.peer();
    let Some(address) = peer.address else { return work.note(Event::NotConnected(Failure::ConnectError)) };
    let connect = async {
        // The semaphore is never closed. The turn ends with the handshake.
        let _turn = TURNS.acquire().await;
        match peer.http {
            None => {
                let connected = client::connect(&peer.access, &peer.identity, address).await;
                connected.map(Box::new).map(Connected::Http2)
            }
            Some(_) => {
                let connected = http1::connect(&peer.access, &peer.identity, address).await;
                connected.map(Box::new).map(Connected::Http1)
            }
        }
    };
    let connected = tokio::select! {
        () = tasks.stopped() => return work.note(Event::Stopped),
        connected = connect => connected,
    };
    match (connected, peer.http.clone()) {
        (Ok(Connected::Http2(connected)), _) => Driver::new(work, *connected, &tasks).await,
        (Ok(Connected::Http1(connected)), Some(target)) => Session::new(work, target, *connected, &tasks).run().await,
        (Ok(Connected::Http1(_)), None) => work.note(Event::NotConnected(Failure::ConnectError)),
        (Err(failure), _) => {
            tracing::debug!(backend = %peer.identity, failure = failure.as_str(), "cannot connect");
            work.note(Event::NotConnected(failure));
        }
    }
}
