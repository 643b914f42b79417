//! Prints the changes of running proxies' rings as they are reported. If the connection to a proxy fails, it is
//! reopened with increasing delays, independently of the other proxies.

use std::{
    error::Error,
    io::{self, Write},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::{RingToolError, json_line, percent, source};
use crate::{
    admin::{
        api::json,
        pb::v1::{Change, PoolRing, WatchRingRequest, WatchRingResponse},
    },
    tools::admin_address::AdminAddress,
};

/// A message with its source.
#[derive(Serialize)]
struct MessageLine<'a> {
    from: &'a str,
    #[serde(flatten)]
    message: &'a WatchRingResponse,
}

/// Delay before the first reconnection attempt. Each further delay is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Longest delay. After a watch that lasted this long, delays start at [`FIRST_PAUSE`] again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Time without received data after which a keep-alive PING is sent, and time to wait for its answer. Without it, the
/// crash of a node would go unnoticed.
const ASK_AFTER: Duration = Duration::from_secs(10);

/// An event of one proxy's watch.
enum Event {
    /// The proxy accepted the watch.
    Began,
    /// A ring and its changes.
    Message(Box<WatchRingResponse>),
    /// The watch failed or could not be opened.
    Failed(RingToolError),
}

/// The watch of one proxy.
struct Watching<'a> {
    address: &'a AdminAddress,
    pool: &'a str,
    messages: Option<(Streaming<WatchRingResponse>, Instant)>,
    /// Delay before the next connection attempt; zero before the first.
    pause: Duration,
}

/// The last messages about one proxy.
#[derive(Default)]
struct Reported {
    began: bool,
    failure: Option<String>,
}

/// Prints changes until writing fails. Returns an error if none of the proxies can be watched at the start, because
/// then the addresses are probably wrong.
pub(super) async fn run(
    addresses: &[AdminAddress],
    pool: &str,
    as_json: bool,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<(), RingToolError> {
    let begin = |(n, address)| {
        let watching = Watching { address, pool, messages: None, pause: Duration::ZERO };
        let events = stream::unfold(watching, async |mut watching| Some((watching.next().await, watching)));
        events.map(move |event| (n, address, event)).boxed()
    };
    let mut events = stream::select_all(addresses.iter().enumerate().map(begin));
    let mut reported: Vec<Reported> = addresses.iter().map(|_| Reported::default()).collect();
    while let Some((n, address, event)) = events.next().await {
        let from = &*address.to_string();
        match event {
            Event::Began => {
                let Some(reported) = reported.get_mut(n) else { continue };
                reported.began = true;
                if reported.failure.take().is_some() {
                    writeln!(err, "{from} is watched again")?;
                }
            }
            Event::Message(message) => {
                if as_json {
                    json_line(&MessageLine { from, message: &message }, out)?;
                } else {
                    print(from, &message, out)?;
                }
                out.flush()?;
            }
            Event::Failed(error) => {
                let is_hopeless =
                    |(it, reported): (usize, &Reported)| !reported.began && (it == n || reported.failure.is_some());
                if reported.iter().enumerate().all(is_hopeless) {
                    return Err(error);
                }
                if let Some(reported) = reported.get_mut(n) {
                    reported.failure(error, err)?;
                }
            }
        }
    }
    Ok(())
}

impl Watching<'_> {
    async fn next(&mut self) -> Event {
        match self.messages.take() {
            None => {
                tokio::time::sleep(self.pause).await;
                match self.begin().await {
                    Ok(messages) => {
                        self.messages = Some((messages, Instant::now()));
                        Event::Began
                    }
                    Err(error) => self.failed(error),
                }
            }
            Some((mut messages, since)) => match messages.message().await {
                Ok(Some(message)) => {
                    self.messages = Some((messages, since));
                    Event::Message(Box::new(message))
                }
                ended => {
                    if since.elapsed() >= LONGEST_PAUSE {
                        self.pause = Duration::ZERO;
                    }
                    self.failed(RingToolError::Ended { from: self.address.to_string(), why: why(ended.err()) })
                }
            },
        }
    }

    async fn begin(&self) -> Result<Streaming<WatchRingResponse>, RingToolError> {
        let request = WatchRingRequest { pool: self.pool.to_owned() };
        source::answered(self.address, self.address.lasting_client(ASK_AFTER).await?.watch_ring(request)).await
    }

    fn failed(&mut self, error: RingToolError) -> Event {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        Event::Failed(error)
    }
}

/// Returns why a watch ended: the proxy's message, if it sent one.
fn why(status: Option<Status>) -> String {
    match status {
        Some(status) if status.source().is_none() => status.message().to_owned(),
        _ => "the connection was closed".to_owned(),
    }
}

impl Reported {
    /// Reports a failure, unless it was the last one reported.
    fn failure(&mut self, error: RingToolError, err: &mut (dyn Write + Send)) -> io::Result<()> {
        let text = format!("{:#}", anyhow::Error::from(error));
        if self.failure.as_ref() != Some(&text) {
            writeln!(err, "{text}; trying again until it can be watched")?;
        }
        self.failure = Some(text);
        Ok(())
    }
}

/// Prints one line for the initial ring, or one line for each change.
fn print(from: &str, message: &WatchRingResponse, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let Some(ring) = &message.ring else { return Ok(()) };
    if message.changes.is_empty() {
        return found(from, ring, out);
    }
    message.changes.iter().try_for_each(|change| changed(from, &ring.pool, change, out))
}

fn found(from: &str, ring: &PoolRing, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let PoolRing { pool, generation, membership_fingerprint, placement_fingerprint, members, .. } = ring;
    if members.is_empty() {
        return writeln!(out, "{from} pool {pool}: no backends yet");
    }
    writeln!(
        out,
        "{from} pool {pool}: generation {generation}, {} backends, membership {membership_fingerprint}, \
         placement {placement_fingerprint}",
        members.len()
    )
}

fn changed(from: &str, pool: &str, change: &Change, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let cause = json::cause_word(change.cause).unwrap_or_else(|| "unknown".to_owned());
    let at = change.at.map(|at| format!("{at} ")).unwrap_or_default();
    let moved = percent(change.moved_share);
    write!(out, "{at}{from} pool {pool}: generation {} by {cause}, moved {moved}", change.generation)?;
    for (what, count, names) in [
        ("added", change.added_count, &change.added),
        ("removed", change.removed_count, &change.removed),
        ("ejected", change.ejected_count, &change.ejected),
        ("returned", change.returned_count, &change.returned),
    ] {
        if count > 0 {
            let more = if count as usize > names.len() { ", …" } else { "" };
            write!(out, ", {what} {count} ({}{more})", names.join(", "))?;
        }
    }
    if let Some(until) = change.handoff_until {
        write!(out, ", hand-off until {until}")?;
    }
    writeln!(out, ", membership {}, placement {}", change.membership_fingerprint, change.placement_fingerprint)
}
