//! What a scenario found: facts, and lines that hold or not.

use std::io::Write;

use anyhow::Result;

/// A table in the making.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// What the next ones are about.
    about: String,
    facts: Vec<(String, String)>,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    what: String,
    limit: String,
    seen: String,
    holds: bool,
}

impl Lines {
    /// From now on all is about this.
    pub(crate) fn about(&mut self, what: &str) {
        self.about = format!("{what}: ");
    }

    /// Something to know that nothing hangs on.
    pub(crate) fn fact(&mut self, what: &str, seen: impl ToString) {
        self.facts.push((format!("{}{what}", self.about), seen.to_string()));
    }

    /// Something that must hold.
    pub(crate) fn line(&mut self, what: &str, limit: &str, seen: impl ToString, holds: bool) {
        let what = format!("{}{what}", self.about);
        self.lines.push(Line { what, limit: limit.to_owned(), seen: seen.to_string(), holds });
    }

    /// A number that must be 0.
    pub(crate) fn none(&mut self, what: &str, seen: usize) {
        self.line(what, "0", seen, seen == 0);
    }

    /// A share in percent that has an upper limit.
    pub(crate) fn at_most_percent(&mut self, what: &str, limit: f64, share: f64) {
        self.line(what, &format!("≤ {limit} %"), format!("{:.3} %", share * 100.0), share * 100.0 <= limit);
    }

    /// A share in percent that has a lower limit.
    pub(crate) fn at_least_percent(&mut self, what: &str, limit: f64, share: f64) {
        self.line(what, &format!("≥ {limit} %"), format!("{:.3} %", share * 100.0), share * 100.0 >= limit);
    }

    /// A scenario that cannot be run here.
    pub(crate) fn skipped(reason: &str) -> Self {
        let mut lines = Self::default();
        lines.fact("skipped", reason);
        lines
    }

    /// What proxies counted as possibly sent twice against what sinks saw twice.
    pub(crate) fn duplicates(&mut self, counted: f64, seen: usize) {
        let holds = u32::try_from(seen).is_ok_and(|seen| counted >= f64::from(seen));
        let what = "records that the proxies counted as possible duplicates";
        self.line(what, &format!("≥ {seen}, as sinks saw"), counted, holds);
    }

    pub(crate) fn hold(&self) -> bool {
        self.lines.iter().all(|line| line.holds)
    }

    pub(crate) fn write(&self, name: &str, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "\n### {name}\n")?;
        for (what, seen) in &self.facts {
            writeln!(out, "- {what}: {seen}")?;
        }
        if self.lines.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n| what must hold | limit | seen | |\n| --- | --- | --- | --- |")?;
        for Line { what, limit, seen, holds } in &self.lines {
            writeln!(out, "| {what} | {limit} | {seen} | {} |", if *holds { "holds" } else { "**does not hold**" })?;
        }
        Ok(())
    }
}
