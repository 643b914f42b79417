//! Several replicas asked at once: who gave no answer is named and hides nobody else, and whether the others agree is told.

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

/// Most traces that are named when replicas differ on them; the rows above tell the rest.
const NAMED: usize = 5;

/// What several sources answered.
#[derive(Debug)]
pub(super) struct Answers<T> {
    /// Those that answered, in their order.
    pub(super) given: Vec<T>,
    /// Whether each of them did.
    pub(super) complete: bool,
}

/// Where one source places traces, in the order of the question.
#[derive(Debug)]
pub(super) struct Placements {
    pub(super) from: String,
    pub(super) answers: Vec<LookupResponse>,
}

/// Asks all sources at once. A lone one that gives no answer is an error; of several each is named on `err`.
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

/// One line for an error with all its causes, as the end of the process would have it.
pub(super) fn say(error: RingToolError, err: &mut (dyn Write + Send)) -> io::Result<()> {
    writeln!(err, "error: {:#}", anyhow::Error::from(error))
}

/// Whether the rings of all are those of the first; says on `err` which are not.
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

/// Whether all place each trace on the same backends; says on `err` which traces they do not.
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

/// By pool, the backends that own the trace.
fn owners(answer: &LookupResponse) -> BTreeMap<&str, BTreeSet<&str>> {
    let pools = answer.pools.iter();
    pools.map(|pool| (&*pool.pool, pool.owners.iter().map(|owner| &*owner.identity).collect())).collect()
}
