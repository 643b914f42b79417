//! A configuration that was read but not checked yet. It comes from a file, or from backends on the command line.

use std::{fmt, path::Path};

use super::{
    Config, ConfigError, LoadError, check,
    node::{Node, Step, Value},
    references,
};
use crate::{
    otlp::Signal,
    settings::{
        DnsResolver, Http, IfWritten, Pool, Resolver, Route, Settings, StaticResolver,
        addresses::{Backend, HostPort, OTLP_GRPC_PORT},
        section::Printed,
        values::ValueError,
    },
};

/// The name of the pool when backends are given on the command line.
const COMMAND_LINE_POOL: &str = "default";

/// Sections of a Collector's file that do not exist here.
const COLLECTOR_SECTIONS: [&str; 5] = ["exporters", "service", "processors", "extensions", "connectors"];

/// A configuration that was read but not checked yet.
#[derive(Clone)]
pub struct Draft {
    name: String,
    /// The file; `None` if there is none.
    root: Option<Node>,
    /// The settings. Flags of the command line can still change them.
    pub settings: Settings,
}

/// Backends on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backends {
    /// `static://host:port,host:port`
    Static(Vec<Backend>),
    /// `dns://name[:port]`
    Dns(HostPort),
}

impl Draft {
    /// Reads a file. References to environment variables are replaced.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text, &|name| std::env::var(name).ok())
    }

    /// Parses the text of a file; `lookup` returns the value of an environment variable. It ends at the first unknown
    /// key or value that cannot be read, so the error is only about that one.
    pub fn parse(name: &str, text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, LoadError> {
        let invalid = |problem| LoadError::Invalid { name: name.to_owned(), problems: vec![problem] };
        let mut root = Node::parse(text).map_err(invalid)?;
        if let Some(problem) = collector_section(&root) {
            return Err(invalid(problem));
        }
        let sources = references::Sources { variable: lookup, file: &references::content_of };
        references::expand(&mut root, sources).map_err(invalid)?;
        rename_kubernetes(&mut root).map_err(invalid)?;
        let settings = settings_of(&root).map_err(invalid)?;
        Ok(Self { name: name.to_owned(), root: Some(root), settings })
    }

    /// Returns the settings that `--backends` is short for: one pool, and a route that sends traces to it by trace ID.
    pub fn of_backends(backends: Backends) -> Self {
        let resolver = match backends {
            Backends::Static(hostnames) => {
                let list = StaticResolver { hostnames, ..StaticResolver::default() };
                Resolver { r#static: Some(list), ..Resolver::default() }
            }
            Backends::Dns(HostPort { host, port }) => {
                let (hostname, port) = (host.to_string(), Some(port));
                let dns = DnsResolver { hostname, port, ..DnsResolver::default() };
                Resolver { dns: Some(dns), ..Resolver::default() }
            }
        };
        let route = Route { signals: vec![Signal::Traces], pool: COMMAND_LINE_POOL.into(), ..Route::default() };
        let mut pool = Pool { resolver, ..Pool::default() };
        set_default_skew(&mut pool);
        let pools = [(COMMAND_LINE_POOL.to_owned(), pool)].into();
        let mut settings = Settings { pools, routes: vec![route], ..Settings::default() };
        settings.receivers.otlp.protocols.http = IfWritten(Some(Http::default()));
        Self { name: "command line".into(), root: None, settings }
    }

    /// Checks the settings. The error lists all problems of the values that could be read.
    pub fn check(&self) -> Result<Config, LoadError> {
        let (is_hidden, place) = (|path: &[Step]| self.is_hidden(path), |path: &[Step]| self.place(path));
        check::check(&self.settings, Path::new("/"), &is_hidden, &place).map_err(|problems| LoadError::Invalid {
            name: self.name.clone(),
            problems: problems.into_iter().map(|problem| self.with_position(problem)).collect(),
        })
    }

    /// Prints a complete file: defaults filled in, references replaced, secrets hidden.
    pub fn print(&self) -> Result<String, LoadError> {
        let print = |error: &dyn fmt::Display| LoadError::Print(error.to_string());
        let text = serde_saphyr::to_string(&Printed(&self.settings)).map_err(|error| print(&error))?;
        let Some(secrets) = self.root.as_ref().filter(|root| root.has_secret()) else { return Ok(text) };
        let mut shown = Node::parse(&text).map_err(|error| print(&error))?;
        shown.hide_secrets_of(secrets);
        serde_saphyr::to_string(&shown).map_err(|error| print(&error))
    }

    /// Returns whether the value at `path` must not be shown.
    fn is_hidden(&self, path: &[Step]) -> bool {
        self.root.as_ref().and_then(|root| root.at(path)).is_some_and(Node::is_hidden)
    }

    /// Returns the place of the key at `path`; empty if there is no file.
    fn place(&self, path: &[Step]) -> String {
        let position = self.root.as_ref().map(|root| root.position_of(path));
        position.map(|at| format!("{}:{}:{}: ", self.name, at.line, at.column)).unwrap_or_default()
    }

    fn with_position(&self, problem: ConfigError) -> ConfigError {
        let position = self.root.as_ref().map(|root| root.position_of(&problem.path));
        ConfigError { position: problem.position.or(position), ..problem }
    }
}

/// Returns the error for a Collector's file, which is more helpful than one about an unknown key.
fn collector_section(root: &Node) -> Option<ConfigError> {
    let entry = COLLECTOR_SECTIONS.iter().find_map(|key| root.entry(key))?;
    let advice = "spanring convert FILE converts it";
    let message = format!("\"{}\" is a key of a Collector's configuration; {advice}", entry.key);
    Some(ConfigError::new(entry.position, Vec::new(), message))
}

/// Gives the resolver that is also written `kubernetes` its other name, so that everything else knows only one.
fn rename_kubernetes(root: &mut Node) -> Result<(), ConfigError> {
    const NAME: &str = "k8s";
    const ALSO: &str = "kubernetes";
    let Some(Value::Map(pools)) = root.child_mut("pools").map(|pools| &mut pools.value) else { return Ok(()) };
    for pool in pools {
        let Some(Value::Map(resolvers)) = pool.node.child_mut("resolver").map(|resolver| &mut resolver.value) else {
            continue;
        };
        let is_there = resolvers.iter().any(|resolver| resolver.key == NAME);
        let Some(entry) = resolvers.iter_mut().find(|resolver| resolver.key == ALSO) else { continue };
        if is_there {
            let path = ["pools", &pool.key, "resolver"].map(|key| Step::Key(key.to_owned())).to_vec();
            let message = format!("{NAME} and {ALSO} are two names of one resolver; write one of them");
            return Err(ConfigError::new(entry.position, path, message));
        }
        NAME.clone_into(&mut entry.key);
    }
    Ok(())
}

/// Sets the `skew` that a hand-off has by default: at most the window, and the window itself if replicas learn of changes by
/// polling.
fn set_default_skew(pool: &mut Pool) {
    let is_watched = pool.resolver.k8s.is_some();
    let handoff = &mut pool.placement.ring.handoff;
    handoff.skew = if is_watched { handoff.skew.min(handoff.window) } else { handoff.window };
}

/// Reads the settings. If a pool has no `timeout`, its default is lowered to the deadline of requests. If a hand-off has no
/// `skew`, it gets its default.
fn settings_of(root: &Node) -> Result<Settings, ConfigError> {
    let mut settings: Settings = root.read()?;
    let deadline = settings.receivers.otlp.deadline;
    for (name, pool) in &mut settings.pools {
        let path = ["pools", name, "timeout"].map(|key| Step::Key(key.to_owned()));
        if root.at(&path).is_none() && !deadline.is_zero() {
            pool.delivery.timeout = pool.delivery.timeout.min(deadline);
        }
        let path = ["pools", name, "ring", "handoff", "skew"].map(|key| Step::Key(key.to_owned()));
        if root.at(&path).is_none() {
            set_default_skew(pool);
        }
    }
    Ok(settings)
}

/// Returns the errors that do not depend on the machine. It ignores values with references, which are not known here,
/// and missing files and names.
pub(crate) fn problems_of(root: &Node) -> Vec<ConfigError> {
    let sources = references::Sources { variable: &|_| Some(String::new()), file: &|_| Ok(String::new()) };
    if let Err(problem) = references::expand(&mut root.clone(), sources) {
        return vec![problem];
    }
    let mut known = root.clone();
    known.drop_references();
    let found = match settings_of(&known) {
        Ok(settings) => {
            check::check(&settings, Path::new("/"), &|_| false, &|_| String::new()).err().unwrap_or_default()
        }
        Err(problem) => vec![problem],
    };
    // An index in an error's path refers to the list without the items that contain references, so convert it.
    let counted = |problem: ConfigError| ConfigError { path: root.with_references(&problem.path), ..problem };
    let mut problems: Vec<ConfigError> = found.into_iter().map(counted).collect();
    problems.retain(|one| !one.is_local && !root.at(&one.path).is_some_and(Node::has_reference));
    problems
}

/// Shows only the name, since values may be secrets.
impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::str::FromStr for Backends {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if let Some(name) = text.strip_prefix("dns://") {
            return HostPort::parse(name, Some(OTLP_GRPC_PORT)).map(Self::Dns);
        }
        let list = text.strip_prefix("static://").ok_or_else(|| ValueError::Backends(text.to_owned()))?;
        list.split(',').map(|one| one.trim().parse()).collect::<Result<_, _>>().map(Self::Static)
    }
}
