//! `spanring convert` converts the configuration of a Collector with load-balancing exporters to ours. It reports each
//! key that is left out or means something else here.
//!
//! No key is dropped silently: `section::Section` keeps track of the keys that were used, and the others are reported.
//! References (`${env:NAME}`) are copied unchanged, since both programs write them alike. The result passes `validate`,
//! provided that the files, variables and addresses that it names exist: `valid` removes what would be refused.

mod exporter;
mod origin;
mod receiver;
mod section;
mod service;
mod valid;
mod yaml;

#[cfg(test)]
mod examples;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unusable;

use std::{fs, path::PathBuf};

use self::{section::Section, yaml::Yaml};
use crate::config::{LoadError, node::Node};

/// Arguments of `spanring convert`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The Collector's configuration file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Result of a conversion.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Our configuration file. It begins with the findings as comments.
    pub yaml: String,
    /// The findings, sorted by cost (the most serious first), then by line.
    pub notes: Vec<Note>,
    /// Number of pools. Without pools there is nothing to run.
    pub pools: usize,
    /// Number of routes.
    pub routes: usize,
}

/// A finding about one key of the Collector's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Path of the key, such as `exporters.loadbalancing.protocol.otlp.keepalive`.
    pub path: String,
    /// Line number, from 1; 0 for the file as a whole.
    pub line: u64,
    /// A description of how the key was converted.
    pub message: String,
    /// Consequence of that.
    pub cost: Cost,
}

/// Consequence of leaving a key out or changing its meaning; the most serious first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// Others than before may send data.
    Access,
    /// Data goes to other backends than before, or is routed by another key.
    Routing,
    /// Data is no longer received, changed or delivered as before.
    Data,
    /// A setting changes; data is not affected.
    Setting,
}

impl Cost {
    /// Returns the heading above the findings of this cost.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Access => "Protection is lost:",
            Self::Routing => "Data is routed differently:",
            Self::Data => "Data is dropped, or not treated as before:",
            Self::Setting => "Settings that are left out or mean something else:",
        }
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{} (line {line}): {}", self.path, self.message),
        }
    }
}

impl Converted {
    /// Returns the findings grouped by cost, with a heading for each group.
    pub fn report(&self) -> Vec<String> {
        report(&self.notes)
    }
}

impl Args {
    /// Reads the file and converts it.
    pub fn run(&self) -> Result<Converted, LoadError> {
        let read = |source| LoadError::Read { path: self.file.clone(), source };
        let text = fs::read_to_string(&self.file).map_err(read)?;
        convert(&self.file.display().to_string(), &text)
    }
}

/// Converts `text`, the content of the file `name`.
pub fn convert(name: &str, text: &str) -> Result<Converted, LoadError> {
    let invalid = |problem| LoadError::Invalid { name: name.to_owned(), problems: vec![problem] };
    let file = Node::parse(text).map_err(invalid)?;
    let mut notes = Vec::new();
    let mut root = Section::root(&file);
    let mut service = service::Service::read(&mut root, &mut notes);
    let pools = exporter::pools(&mut root, &mut service, &mut notes);
    let receivers = receiver::receivers(&mut root, &mut service, &mut notes);
    let memory_limiter = service.memory_limiter(&mut root, &mut notes);
    let health_check = service.health_check(&mut root, &mut notes);
    root.rest(&mut notes);
    let whole = Yaml::map([
        ("receivers", receivers),
        ("pools", Yaml::Map(pools)),
        ("routes", Yaml::List(service.routes)),
        ("memory_limiter", memory_limiter),
        ("admin", service.admin),
        ("health_check", health_check),
        ("telemetry", service.telemetry),
    ]);
    let whole = valid::remove_refused(whole, &service.origins, &file, &mut notes).map_err(invalid)?;
    notes.sort_by_key(|note| (note.cost, note.line));
    let count = |key| whole.at(key).map_or(0, Yaml::len);
    let (pools, routes) = (count("pools"), count("routes"));
    let yaml = format!("{}{}", header(name, &notes, pools > 0), whole.print().map_err(LoadError::Print)?);
    Ok(Converted { yaml, notes, pools, routes })
}

/// How to place traces as the exporter does, for the top of a file with pools.
const SIDE_BY_SIDE: &str = "\
# These pools place traces by slots_v1, not as the exporter does. To run both side by side without split traces, add to
# each pool the ring of the exporter's version, and follow \"Beside the exporter\" in deploy/docs/migration.md:
#   ring: { algorithm: otelcol_v1 }    # up to v0.129
#   ring: { algorithm: otelcol_v2 }    # v0.131 to v0.156
#   ring: { algorithm: otelcol_v3 }    # v0.157 and newer
# and, as long as the exporter runs too, what the exporter does not have either:
#   hold_down: 0s
#   outlier_detection: { max_ejection_percent: 0 }
";

fn header(name: &str, notes: &[Note], has_pools: bool) -> String {
    let mut text = format!("# Converted from {name} by spanring {}.\n", env!("CARGO_PKG_VERSION"));
    if has_pools {
        text.push_str(SIDE_BY_SIDE);
    }
    for line in report(notes) {
        text.push_str(&format!("# {}\n", line.replace('\n', " ")));
    }
    text
}

fn report(notes: &[Note]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut last = None;
    for note in notes {
        if last != Some(note.cost) {
            lines.push(note.cost.heading().to_owned());
            last = Some(note.cost);
        }
        lines.push(format!("  {note}"));
    }
    lines
}
