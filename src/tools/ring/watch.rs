//! Changes of running proxies' rings, printed as they come.

use std::io::{self, Write};

use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::{RingToolError, json_line, percent, source::AdminAddress};
use crate::admin::{
    api::json,
    pb::v1::{Change, PoolRing, WatchRingRequest, WatchRingResponse},
};

/// A message, and where it is from.
#[derive(Serialize)]
struct Told<'a> {
    from: &'a str,
    #[serde(flatten)]
    message: &'a WatchRingResponse,
}

/// Prints until one of the proxies goes.
pub(super) async fn run(
    addresses: &[AdminAddress],
    pool: &str,
    as_json: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), RingToolError> {
    let mut streams = Vec::new();
    for address in addresses {
        let request = WatchRingRequest { pool: pool.to_owned() };
        let messages = address.client().await?.watch_ring(request).await.map_err(|status| address.refused(&status))?;
        // The end of one is told as what it is: a proxy that went.
        let end = stream::once(async { Err(tonic::Status::unavailable("it ended the watch")) });
        streams.push(messages.into_inner().chain(end).map(move |message| (address, message)).boxed());
    }
    let mut messages = stream::select_all(streams);
    while let Some((address, message)) = messages.next().await {
        let message = message.map_err(|status| address.refused(&status))?;
        let from = &*address.to_string();
        if as_json {
            json_line(&Told { from, message: &message }, out)?;
        } else {
            print(from, &message, out)?;
        }
        out.flush()?;
    }
    Ok(())
}

/// One line for the ring as it was found, then one for each change.
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
    writeln!(out, ", membership {}, placement {}", change.membership_fingerprint, change.placement_fingerprint)
}
