//! The report of all runs: a table and JSON.

use std::{fs, io::Write, path::Path};

use anyhow::Result;
use serde::Serialize;

use crate::whole::run::Outcome;

/// The columns of the table.
const COLUMNS: [&str; 13] = [
    "event",
    "mode",
    "skew",
    "traces near",
    "whole",
    "of them moved",
    "whole",
    "split",
    "excusable",
    "twice near",
    "twice later",
    "traffic near",
    "lost",
];

/// The report as JSON.
#[derive(Serialize)]
struct Json<'o> {
    program: &'o str,
    runs: &'o [Outcome],
}

/// Writes the heads of the columns.
pub(crate) fn write_head(out: &mut dyn Write) -> Result<()> {
    writeln!(out, "| {} |\n|{}", COLUMNS.join(" | "), " --- |".repeat(COLUMNS.len()))?;
    Ok(out.flush()?)
}

/// Writes the line of a run.
pub(crate) fn write_line(outcome: &Outcome, out: &mut dyn Write) -> Result<()> {
    let Outcome { event, mode, skew_s, verdict, .. } = outcome;
    let of_moved =
        |value: String| if outcome.knows_moved && verdict.moved.traces > 0 { value } else { "–".to_owned() };
    let cells = [
        (*event).to_owned(),
        (*mode).to_owned(),
        format!("{skew_s} s"),
        verdict.near.traces.to_string(),
        percent(verdict.near.whole_share(), 2),
        of_moved(verdict.moved.traces.to_string()),
        of_moved(percent(verdict.moved.whole_share(), 2)),
        (verdict.near.split + verdict.near.incomplete).to_string(),
        verdict.near.excusable.to_string(),
        percent(verdict.near_spans.twice_share(), 2),
        percent(verdict.later_spans.twice_share(), 2),
        verdict.near_spans.traffic().map_or_else(|| "–".to_owned(), |traffic| format!("{traffic:.3}")),
        verdict.lost.to_string(),
    ];
    writeln!(out, "| {} |", cells.join(" | "))?;
    Ok(out.flush()?)
}

/// Writes what the table does not show.
pub(crate) fn write_notes(outcomes: &[Outcome], out: &mut dyn Write) -> Result<()> {
    writeln!(
        out,
        "
Near: with a span within 30 s of a change (with --quick, all times are shorter). Whole: one backend got every span.
Moved: the change gave the trace another owner. Split: near and not whole on any backend. Excusable: those of the split
ones that had a span on an instance which stopped before their last span came. Twice: the share of spans that were
delivered more than once, near a change and from a minute after the last one on. Traffic: spans delivered ÷ spans exported.
Lost: acknowledged spans that no backend got.
"
    )?;
    for outcome in outcomes {
        let Outcome { event, mode, skew_s, verdict, .. } = outcome;
        let far = verdict.far.traces - verdict.far.whole;
        if far > 0 {
            writeln!(out, "{event}, {mode}, {skew_s} s: {far} traces that are not near a change are not whole")?;
        }
        if verdict.refused > 0 {
            writeln!(out, "{event}, {mode}, {skew_s} s: {} spans were not acknowledged", verdict.refused)?;
        }
        for (error, count) in &outcome.errors {
            writeln!(out, "{event}, {mode}, {skew_s} s: {count} requests were repeated after: {error}")?;
        }
    }
    Ok(())
}

/// Writes all outcomes as JSON to a file.
pub(crate) fn write_json(program: &str, runs: &[Outcome], file: &Path) -> Result<()> {
    Ok(fs::write(file, serde_json::to_vec_pretty(&Json { program, runs })?)?)
}

/// Formats a share.
pub(crate) fn percent(share: Option<f64>, decimals: usize) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.decimals$} %", share * 100.0))
}
