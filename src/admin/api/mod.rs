//! Answers questions about this proxy's rings, as messages. [`json`] and `grpc` only render them.
//!
//! `facts` builds messages from tables and records; the functions here select pools and refuse what cannot be answered.
//! The command `spanring ring` uses both for rings that no proxy runs.

pub mod facts;
pub(super) mod grpc;
pub(super) mod health;
pub mod json;
mod watch;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::facts::{TraceId, TraceIdError};
use super::{
    Pool, PoolSet,
    pb::v1::{
        GetRingResponse, ListBackendsResponse, ListChangesResponse, LookupRequest, LookupResponse, PoolBackends,
        PoolChanges,
    },
};
use crate::{
    otlp::{Signal, text},
    ring::Table,
};

/// The most bytes of a client's text that an error repeats.
const MAX_REPEATED: usize = 64;

/// The version of the messages, part of each answer. Fields may be added within a version.
pub const VERSION: &str = "v1";

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The question is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The query is longer than any question needs to be.
    #[error("the query is longer than {0} bytes")]
    TooLong(usize),
    /// The trace ID is invalid.
    #[error(transparent)]
    TraceId(#[from] TraceIdError),
    /// There is no pool of this name.
    #[error("no pool is named {pool:?}; there are: {known}")]
    NoPool {
        /// The requested name.
        pool: String,
        /// The existing pools.
        known: String,
    },
    /// No requested pool takes this signal.
    #[error("{} are routed to no pool that was asked for", signal.as_str())]
    NoRoute {
        /// The signal.
        signal: Signal,
    },
    /// The pool has no table yet.
    #[error("pool {pool} has no backends yet: discovery has found none")]
    NoTable {
        /// Name of the pool.
        pool: String,
    },
    /// Too many clients watch at the same time.
    #[error("{0} clients watch already, which is the limit; close one, or poll instead")]
    TooMany(usize),
    /// There is no memory for the answer.
    #[error("{}", super::answers::NO_ROOM)]
    NoRoom,
}

/// The rings of all pools, or of one.
pub fn ring(pools: &PoolSet, pool: &str) -> Result<GetRingResponse, AskError> {
    let rings = chosen(pools, pool)?.map(|(name, pool)| facts::ring_of_pool(name, pool)).collect();
    Ok(GetRingResponse { api_version: VERSION.into(), pools: rings })
}

/// The state and load of the backends of all pools, or of one.
pub fn backends(pools: &PoolSet, pool: &str) -> Result<ListBackendsResponse, AskError> {
    let of =
        |(name, pool): (&Arc<str>, &Pool)| PoolBackends { pool: name.to_string(), backends: facts::backends(pool) };
    Ok(ListBackendsResponse { api_version: VERSION.into(), pools: chosen(pools, pool)?.map(of).collect() })
}

/// The last changes of all pools, or of one.
pub fn changes(pools: &PoolSet, pool: &str) -> Result<ListChangesResponse, AskError> {
    let of = |(name, pool): (&Arc<str>, &Pool)| PoolChanges {
        pool: name.to_string(),
        changes: pool.membership.record.changes().iter().map(|past| facts::change(past)).collect(),
    };
    Ok(ListChangesResponse { api_version: VERSION.into(), pools: chosen(pools, pool)?.map(of).collect() })
}

/// Where the records of a trace go, in every requested pool.
pub fn lookup(pools: &PoolSet, question: &LookupRequest) -> Result<LookupResponse, AskError> {
    let id: TraceId = question.trace_id.parse()?;
    let signal = signal_of(&question.signal)?;
    let takes = |pool: &Pool| signal.is_none_or(|signal| pool.signals.contains(&signal));
    let mut placements = Vec::new();
    for (name, pool) in chosen(pools, &question.pool)?.filter(|(_, pool)| takes(pool)) {
        let table = table(pool).ok_or_else(|| AskError::NoTable { pool: name.to_string() })?;
        let mut placement = facts::placement(name, &table, Some(&pool.membership.record), &id);
        placement.signals = facts::signals(pool);
        if !signal.map_or(pool.signals.contains(&Signal::Traces), |signal| signal == Signal::Traces) {
            // The hand-off is one of spans; other signals go to the new owner at once.
            placement.previous_owners.clear();
        }
        placements.push(placement);
    }
    match signal {
        Some(signal) if placements.is_empty() => Err(AskError::NoRoute { signal }),
        _ => Ok(LookupResponse { api_version: VERSION.into(), trace_id: id.to_string(), pools: placements }),
    }
}

/// All pools if `name` is empty, else the one of that name.
fn chosen<'a>(
    pools: &'a PoolSet,
    name: &str,
) -> Result<impl Iterator<Item = (&'a Arc<str>, &'a Pool)> + use<'a>, AskError> {
    if !name.is_empty() && !pools.contains_key(name) {
        let known: Vec<&str> = pools.keys().map(|name| &**name).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(AskError::NoPool { pool: shortened(name), known });
    }
    let name = name.to_owned();
    Ok(pools.iter().filter(move |(it, _)| name.is_empty() || ***it == *name))
}

fn signal_of(word: &str) -> Result<Option<Signal>, AskError> {
    if word.is_empty() {
        return Ok(None);
    }
    let signal = Signal::ALL.into_iter().find(|signal| signal.as_str() == word);
    signal.map(Some).ok_or_else(|| {
        let known: Vec<&str> = Signal::ALL.iter().map(|signal| signal.as_str()).collect();
        AskError::Invalid(format!("{:?} is no signal; there are: {}", shortened(word), known.join(", ")))
    })
}

fn table(pool: &Pool) -> Option<Arc<Table>> {
    pool.membership.tables.borrow().clone()
}

/// A text from a client as an error repeats it.
fn shortened(text: &str) -> String {
    text::shortened(text, MAX_REPEATED).into_owned()
}
