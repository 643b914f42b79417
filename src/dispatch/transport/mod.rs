//! Calls to one backend: connects, turns what is to be sent into gRPC over HTTP/2, hears the replies, and notices when the
//! backend cannot be reached any more.
//!
//! The floor below the queues, of which it knows nothing. [`serve`] is the life of one connection. What it sends, and who
//! hears what became of it, is [`Work`]: the connection takes calls from it and tells it what became of each of them, and
//! what was seen of the backend.
//!
//! From the outside in: `driver` is the task of a connection with all its calls, `wakers` says what it was woken for,
//! `clock` is its timer and `silence` judges how long the backend may say nothing; `client` begins HTTP/2 on what `dialer`
//! connects, by TLS where the backend's access has it; `call` is one RPC, `body` and `codec` what it sends, `reply` what it
//! hears, `outcome` what that means, `witness` a call that outlives its clients. `wire` gathers what HTTP/2 writes,
//! `outgoing` keeps it without a copy, `frames` fits it to the backend, `stream` is the socket. `probe` asks a backend on a
//! connection of its own whether it is there.

mod body;
mod call;
mod client;
mod clock;
mod codec;
mod dialer;
mod driver;
mod frames;
mod outcome;
mod outgoing;
mod probe;
mod reply;
mod silence;
mod stream;
#[cfg(test)]
mod tests;
mod wakers;
mod wire;
mod witness;
mod work;

use self::driver::Driver;
pub(super) use self::{
    dialer::speaks_tls,
    outcome::{Partial, Scope, Verdict},
    wakers::{AWAY, MAX_PLACES, QUEUE, Wakers},
    work::{Contents, Event, Peer, Work},
};
pub use self::{outcome::Failure, probe::HealthCheck};
use crate::lifecycle::Tasks;

/// Connects to the backend of `work` and serves it until the connection ends, or until `tasks` are stopped.
pub(super) async fn serve<W: Work>(mut work: W, tasks: Tasks) {
    let peer = work.peer();
    let Some(address) = peer.address else { return work.note(Event::NotConnected(Failure::ConnectError)) };
    let connected = tokio::select! {
        () = tasks.stopped() => return work.note(Event::Stopped),
        connected = client::connect(&peer.access, &peer.identity, address) => connected,
    };
    match connected {
        Ok(connected) => Driver::new(work, connected, &tasks).await,
        Err(failure) => {
            tracing::debug!(backend = %peer.identity, failure = failure.as_str(), "cannot connect");
            work.note(Event::NotConnected(failure));
        }
    }
}
