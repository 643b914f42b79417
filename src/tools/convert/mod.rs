//! `spanring convert`: a Collector's load-balancing configuration in, ours out, and a word on all that has no equal.
//!
//! Nothing is dropped in silence: `section::Section` hands every key out once, and what nobody asked for is named.
//! References (`${env:NAME}`) pass as they are, since both sides write them alike.

mod exporter;
mod receiver;
mod section;
mod service;
mod yaml;

#[cfg(test)]
mod tests;

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
    /// Our file; what has no equal stands above it in comments.
    pub yaml: String,
    /// What has no equal or means something else here, each with its key's path.
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
    /// The line, counted from 1.
    pub line: u64,
    /// What became of it.
    pub message: String,
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (line {}): {}", self.path, self.line, self.message)
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
    let root = Node::parse(text).map_err(invalid)?;
    let mut notes = Vec::new();
    let mut root = Section::root(&root);
    let mut service = service::Service::read(&mut root, &mut notes);
    let pools = exporter::pools(&mut root, &mut service, &mut notes);
    let receivers = receiver::receivers(&mut root, &service, &mut notes);
    let memory_limiter = service.memory_limiter(&mut root, &mut notes);
    let health_check = service.health_check(&mut root, &mut notes);
    root.rest(&mut notes);
    let counts = (pools.len(), service.routes.len());
    let whole = Yaml::map([
        ("receivers", receivers),
        ("pools", Yaml::Map(pools)),
        ("routes", Yaml::List(service.routes)),
        ("memory_limiter", memory_limiter),
        ("admin", service.admin),
        ("health_check", health_check),
        ("telemetry", service.telemetry),
    ]);
    notes.sort_by_key(|note| note.line);
    let yaml = format!("{}{}", header(name, &notes), whole.print().map_err(LoadError::Print)?);
    Ok(Converted { yaml, notes, pools: counts.0, routes: counts.1 })
}

fn header(name: &str, notes: &[Note]) -> String {
    let mut text = format!("# Converted from {name} by spanring {}.\n", env!("CARGO_PKG_VERSION"));
    if !notes.is_empty() {
        text.push_str("# What has no equal, or another meaning here:\n");
    }
    for note in notes {
        text.push_str(&format!("#   {}\n", note.to_string().replace('\n', " ")));
    }
    text
}
