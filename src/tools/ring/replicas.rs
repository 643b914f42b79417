//! Asks several replicas at once. Reports those without an answer, and whether the answers of the others agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use futures_util::future;

use super::{
    RingToolError, diff,
    source::{Rings, Source},
};
use crate::admin::pb::v1::LookupResponse;

/// Largest number of traces that are listed when replicas differ; the table contains all of them.
const NAMED: usize = 5;

/// The answers of several sources.
#[derive(Debug)]
pub(super) struct Answers<T> {
    /// The answers, in the order of the sources.
    pub(super) given: Vec<T>,
    /// Whether all sources answered.
    pub(super) complete: bool,
}

/// Placements of traces by one source, in the order of the request.
#[derive(Debug)]
pub(super) struct Placements {
    pub(super) from: String,
    pub(super) answers: Vec<LookupResponse>,
}

/// Asks all sources at once. If the only source fails, its error is returned; if one of several fails, the error is
/// written to `err`.
pub(super) async fn ask<'a, T, F>(
    sources: &'a [Source],
    ask: impl Fn(&'a Source) -> F,
    err: &mut (dyn Write + Send),
) -> Result<Answers<T>, RingToolError>
where
    F: Future<Output = Result<T, RingToolError>>,
{
    let mut given = Vec::new();
    for answer in future::join_all(sources.iter().map(ask)).await {
        match answer {
            Ok(answer) => given.push(answer),
            Err(error) if sources.len() == 1 => return Err(error),
            Err(error) => say(error, err)?,
        }
    }
    Ok(Answers { complete: given.len() == sources.len(), given })
}

/// Writes an error and its causes as one line, like errors that end the process.
pub(super) fn say(error: RingToolError, err: &mut (dyn Write + Send)) -> io::Result<()> {
    writeln!(err, "error: {:#}", anyhow::Error::from(error))
}

/// Returns whether all rings equal those of the first source; reports on `err` which do not.
pub(super) fn rings_agree(given: &[Rings], err: &mut (dyn Write + Send)) -> io::Result<bool> {
    let Some((first, others)) = given.split_first() else { return Ok(true) };
    let mut agree = true;
    for other in others.iter().filter(|other| !diff::of(first, other).agree) {
        agree = false;
        let (a, b) = (&first.from, &other.from);
        writeln!(err, "the rings of {b} differ from those of {a}: spanring ring diff {a} {b}")?;
    }
    Ok(agree)
}

/// Returns whether all sources place each trace on the same backends; reports on `err` the traces for which they do
/// not.
pub(super) fn placements_agree(given: &[Placements], err: &mut (dyn Write + Send)) -> io::Result<bool> {
    let Some((first, others)) = given.split_first() else { return Ok(true) };
    let differs = |(n, answer): &(usize, &LookupResponse)| {
        let owners = Some(owners(answer));
        others.iter().any(|other| other.answers.get(*n).map(self::owners) != owners)
    };
    let differing: Vec<&str> =
        first.answers.iter().enumerate().filter(differs).map(|(_, answer)| &*answer.trace_id).collect();
    if differing.is_empty() {
        return Ok(true);
    }
    let named = differing.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    let more = if differing.len() > NAMED { ", …" } else { "" };
    let (some, all) = (differing.len(), first.answers.len());
    writeln!(err, "the replicas differ on {some} of {all} traces: {named}{more}; spanring ring diff says why")?;
    Ok(false)
}

/// Returns the backends that own the trace, by pool.
fn owners(answer: &LookupResponse) -> BTreeMap<&str, BTreeSet<&str>> {
    let pools = answer.pools.iter();
    pools.map(|pool| (&*pool.pool, pool.owners.iter().map(|owner| &*owner.identity).collect())).collect()
}
