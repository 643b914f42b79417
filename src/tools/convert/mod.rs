//! `spanring convert`: a Collector's load-balancing configuration in, ours out, and a finding for each key that is left out or
//! means something else here.
//!
//! Nothing is dropped in silence: `section::Section` hands every key out once, and what nobody asked for is named.
//! References (`${env:NAME}`) pass as they are, since both sides write them alike. What comes out passes `validate` wherever the
//! files, variables and addresses that it names are there: `valid` takes out what would not.

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
use crate::config::{LoadError, tree::Node};

/// What the command line says.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The Collector's configuration file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Our file; the findings stand above it in comments.
    pub yaml: String,
    /// Keys that are left out or mean something else here: what costs most first, then by line.
    pub notes: Vec<Note>,
    /// Pools that came out; without one there is nothing to run.
    pub pools: usize,
    /// Routes that came out.
    pub routes: usize,
}

/// A key of the Collector's file, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where it stands: `exporters.loadbalancing.protocol.otlp.keepalive`.
    pub path: String,
    /// The line, counted from 1; 0 for the file as a whole.
    pub line: u64,
    /// What became of it.
    pub message: String,
    /// What that costs.
    pub cost: Cost,
}

/// What it costs that a key is left out or means something else here; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// Data goes to other backends than before, or by another key.
    Routing,
    /// Data is no longer taken, changed or delivered as before.
    Data,
    /// A setting that moves no data.
    Setting,
}

impl Cost {
    /// What stands above the findings of that cost.
    pub fn heading(self) -> &'static str {
        match self {
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
    /// The findings, by cost, with a heading for each.
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

/// Converts the text of a file called `name`.
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
    let whole = valid::made(whole, &service.origins, &file, &mut notes).map_err(invalid)?;
    notes.sort_by_key(|note| (note.cost, note.line));
    let yaml = format!("{}{}", header(name, &notes), whole.print().map_err(LoadError::Print)?);
    let count = |key| whole.at(key).map_or(0, Yaml::len);
    Ok(Converted { yaml, notes, pools: count("pools"), routes: count("routes") })
}

fn header(name: &str, notes: &[Note]) -> String {
    let mut text = format!("# Converted from {name} by spanring {}.\n", env!("CARGO_PKG_VERSION"));
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
