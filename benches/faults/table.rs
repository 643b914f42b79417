//! The findings of a scenario: facts, and checks that hold or fail.

use std::io::Write;

use anyhow::Result;

/// The findings so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Prefix of the next findings.
    prefix: String,
    facts: Vec<(String, String)>,
    /// Lines of a table of its own.
    lines: Vec<String>,
    checks: Vec<Check>,
}

#[derive(Debug)]
struct Check {
    what: String,
    limit: String,
    seen: String,
    holds: bool,
}

impl Findings {
    /// Starts a section: sets the prefix of the following findings.
    pub(crate) fn section(&mut self, what: &str) {
        self.prefix = format!("{what}: ");
    }

    /// Adds an observation that is not checked.
    pub(crate) fn fact(&mut self, what: &str, seen: impl ToString) {
        self.facts.push((format!("{}{what}", self.prefix), seen.to_string()));
    }

    /// Adds a table, given by its lines.
    pub(crate) fn lines(&mut self, lines: impl IntoIterator<Item = String>) {
        self.lines.extend(lines);
    }

    /// Adds a check.
    pub(crate) fn check(&mut self, what: &str, limit: &str, seen: impl ToString, holds: bool) {
        let what = format!("{}{what}", self.prefix);
        self.checks.push(Check { what, limit: limit.to_owned(), seen: seen.to_string(), holds });
    }

    /// Checks that a number is 0.
    pub(crate) fn zero(&mut self, what: &str, seen: usize) {
        self.check(what, "0", seen, seen == 0);
    }

    /// Checks that a share does not exceed a limit in percent.
    pub(crate) fn at_most_percent(&mut self, what: &str, limit: f64, share: f64) {
        self.check(what, &format!("≤ {limit} %"), format!("{:.3} %", share * 100.0), share * 100.0 <= limit);
    }

    /// Checks that a share is not below a limit in percent.
    pub(crate) fn at_least_percent(&mut self, what: &str, limit: f64, share: f64) {
        self.check(what, &format!("≥ {limit} %"), format!("{:.3} %", share * 100.0), share * 100.0 >= limit);
    }

    /// The findings of a scenario that cannot run here.
    pub(crate) fn skipped(reason: &str) -> Self {
        let mut findings = Self::default();
        findings.fact("skipped", reason);
        findings
    }

    /// Checks that the proxies counted at least as many possible duplicates as the sinks received.
    pub(crate) fn duplicates(&mut self, counted: f64, seen: usize) {
        let holds = u32::try_from(seen).is_ok_and(|seen| counted >= f64::from(seen));
        let what = "records that the proxies counted as possible duplicates";
        self.check(what, &format!("≥ {seen}, as many as sinks received"), counted, holds);
    }

    pub(crate) fn hold(&self) -> bool {
        self.checks.iter().all(|check| check.holds)
    }

    pub(crate) fn write(&self, name: &str, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "\n### {name}\n")?;
        for (what, seen) in &self.facts {
            writeln!(out, "- {what}: {seen}")?;
        }
        if !self.lines.is_empty() {
            writeln!(out)?;
        }
        for line in &self.lines {
            writeln!(out, "{line}")?;
        }
        if self.checks.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n| check | limit | seen | |\n| --- | --- | --- | --- |")?;
        for Check { what, limit, seen, holds } in &self.checks {
            writeln!(out, "| {what} | {limit} | {seen} | {} |", if *holds { "holds" } else { "**fails**" })?;
        }
        Ok(())
    }
}
