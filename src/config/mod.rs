//! What the operator asked for, read and checked once, before any port is bound.
//!
//! A file goes through five steps, each a file here: `tree` reads YAML and keeps every value's place, `expand` puts
//! environment variables in, `de` reads the [`settings`](crate::settings) out of the tree, `check` looks at what one value
//! can't know of another and makes of the whole what the rooms are started with. Rooms never import this one.

mod changes;
mod check;
mod de;
mod expand;
mod fixed;
pub mod headers;
mod memory;
mod said;
mod tls;
pub(crate) mod tree;

#[cfg(test)]
mod messages;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use self::tree::{Node, Step};
pub use self::{changes::changed_keys, fixed::FIXED, tree::Place};
use crate::{
    admin, discovery, dispatch, membership,
    otlp::Signal,
    pipeline, receive,
    settings::{
        DnsResolver, Logs, Pool, Resolver, Route, Settings, Shutdown, StaticResolver,
        addresses::{Backend, HostPort, ListenAddress, OTLP_GRPC_PORT},
        section::Printed,
        values::ValueError,
    },
};

/// The pool's name when backends are given on the command line.
const COMMAND_LINE_POOL: &str = "default";

/// A checked configuration: each room's own settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where OTLP comes in.
    pub receive: receive::Config,
    /// How requests are treated.
    pub pipeline: pipeline::Config,
    /// Sets of backends, by name.
    pub pools: Vec<PoolConfig>,
    /// Which signals go where. A signal stands in one route at most.
    pub routes: Vec<RouteConfig>,
    /// Where metrics and probes are served, if they are.
    pub admin: Option<admin::Config>,
    /// Where probes are served apart from that, if they are.
    pub health_check: Option<admin::health_check::Config>,
    /// Bytes that requests may hold in memory.
    pub memory_limit: usize,
    /// Threads of the runtime.
    pub worker_threads: usize,
    /// How the process ends.
    pub shutdown: Shutdown,
    /// How it logs.
    pub logs: Logs,
    /// What is allowed and yet worth a line in the log at start.
    pub warnings: Vec<String>,
}

/// A pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    /// Its name, in labels and logs.
    pub name: String,
    /// Who its backends are.
    pub discovery: discovery::Config,
    /// How traces are placed, and what becomes of backends that fail or leave.
    pub membership: membership::Config,
    /// How parts reach them.
    pub dispatch: dispatch::Config,
    /// Headers of every call; none that gRPC or HTTP give a meaning to.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// TLS of the connections to them; `None` is plaintext.
    pub tls: Option<crate::tls::ClientConfig>,
}

/// A route, by trace ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// What takes it.
    pub signals: Vec<Signal>,
    /// Where it leads: the name of one of [`Config::pools`].
    pub pool: String,
}

impl Config {
    /// A proxy in front of `backends` on ports that the system chooses, for a process that holds several.
    pub fn on_free_ports(backends: &[SocketAddr]) -> Result<Self, LoadError> {
        let any = HostPort { host: "127.0.0.1".into(), port: 0 };
        let backend = |address: &SocketAddr| Backend(HostPort { host: address.ip().to_string(), port: address.port() });
        let hostnames = backends.iter().map(backend).collect();
        let mut draft = Draft::of_backends(Backends::Static(hostnames));
        draft.settings.receivers.otlp.protocols.grpc.endpoint = ListenAddress(any.clone());
        draft.settings.admin.endpoint = ListenAddress(any);
        draft.check()
    }
}

/// A complaint about one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    place: Option<Place>,
    path: Vec<Step>,
    message: String,
    /// Whether it holds for this machine only: elsewhere a file or a name may be there.
    is_local: bool,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was read, and does not hold: one line for each complaint.
    #[error("{}", Complaints(name, problems))]
    Invalid {
        /// The file's name.
        name: String,
        /// What is wrong.
        problems: Vec<ConfigError>,
    },
    /// It can't be read, for a reason of our own.
    #[error("cannot read the configuration: {0}")]
    Thread(String),
    /// It can't be printed.
    #[error("cannot print the configuration: {0}")]
    Print(String),
}

/// A file, or the command line in a file's stead, that was read and not yet checked.
#[derive(Clone)]
pub struct Draft {
    name: String,
    tree: Option<Node>,
    /// What it says; the command line may override.
    pub settings: Settings,
}

/// Backends as they are given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backends {
    /// `static://host:port,host:port`
    Static(Vec<Backend>),
    /// `dns://name[:port]`
    Dns(HostPort),
}

impl Draft {
    /// Reads a file, with the environment's variables.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text, &|name| std::env::var(name).ok())
    }

    /// Reads a text; `lookup` answers for environment variables.
    pub fn parse(name: &str, text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, LoadError> {
        let invalid = |problem| LoadError::Invalid { name: name.to_owned(), problems: vec![problem] };
        let mut tree = Node::parse(text).map_err(invalid)?;
        if let Some(problem) = of_a_collector(&tree) {
            return Err(invalid(problem));
        }
        let sources = expand::Sources { variable: lookup, file: &expand::content_of };
        expand::expand(&mut tree, sources).map_err(invalid)?;
        let settings = settings_of(&tree).map_err(invalid)?;
        Ok(Self { name: name.to_owned(), tree: Some(tree), settings })
    }

    /// What `--backends` stands for: one pool, and traces by trace ID to it.
    pub fn of_backends(backends: Backends) -> Self {
        let resolver = match backends {
            Backends::Static(hostnames) => {
                Resolver { r#static: Some(StaticResolver { hostnames, ..StaticResolver::default() }), dns: None }
            }
            Backends::Dns(HostPort { host, port }) => {
                Resolver { r#static: None, dns: Some(DnsResolver { hostname: host, port, ..DnsResolver::default() }) }
            }
        };
        let route = Route { signals: vec![Signal::Traces], pool: COMMAND_LINE_POOL.into(), ..Route::default() };
        let pools = [(COMMAND_LINE_POOL.to_owned(), Pool { resolver, ..Pool::default() })].into();
        let settings = Settings { pools, routes: vec![route], ..Settings::default() };
        Self { name: "command line".into(), tree: None, settings }
    }

    /// Checks the whole, all complaints at once.
    pub fn check(&self) -> Result<Config, LoadError> {
        check::check(&self.settings, Path::new("/"), &|path| self.is_hidden(path)).map_err(|problems| {
            LoadError::Invalid {
                name: self.name.clone(),
                problems: problems.into_iter().map(|problem| self.placed(problem)).collect(),
            }
        })
    }

    /// The whole file, defaults filled in, references replaced, secrets hidden.
    pub fn print(&self) -> Result<String, LoadError> {
        let print = |error: &dyn fmt::Display| LoadError::Print(error.to_string());
        let text = serde_saphyr::to_string(&Printed(&self.settings)).map_err(|error| print(&error))?;
        let Some(secrets) = self.tree.as_ref().filter(|tree| tree.has_secret()) else { return Ok(text) };
        let mut shown = Node::parse(&text).map_err(|error| print(&error))?;
        shown.hide_secrets_of(secrets);
        serde_saphyr::to_string(&shown).map_err(|error| print(&error))
    }

    /// Whether no message may show what stands there.
    fn is_hidden(&self, path: &[Step]) -> bool {
        self.tree.as_ref().and_then(|tree| tree.at(path)).is_some_and(Node::is_hidden)
    }

    fn placed(&self, problem: ConfigError) -> ConfigError {
        let place = self.tree.as_ref().map(|tree| tree.place_of(&problem.path));
        ConfigError { place: problem.place.or(place), ..problem }
    }
}

/// What is said of a Collector's file, before anything in it is complained about.
fn of_a_collector(tree: &Node) -> Option<ConfigError> {
    let entry =
        ["exporters", "service", "processors", "extensions", "connectors"].iter().find_map(|key| tree.entry(key))?;
    let message = format!(
        "\"{}\" is a key of a Collector's configuration; spanring convert FILE makes one of ours of that",
        entry.key
    );
    Some(ConfigError { place: Some(entry.place), path: Vec::new(), message, is_local: false })
}

/// What a tree says; a default gives way to what is written.
fn settings_of(tree: &Node) -> Result<Settings, ConfigError> {
    let mut settings: Settings = tree.read()?;
    let deadline = settings.receivers.otlp.deadline;
    for (name, pool) in &mut settings.pools {
        let path = ["pools", name, "timeout"].map(|key| Step::Key(key.to_owned()));
        if tree.at(&path).is_none() && !deadline.is_zero() {
            pool.delivery.timeout = pool.delivery.timeout.min(deadline);
        }
    }
    Ok(settings)
}

/// What would be refused of a file wherever it is to run: values with references are left aside, and so is what this machine
/// may lack.
pub(crate) fn problems_of(tree: &Node) -> Vec<ConfigError> {
    let sources = expand::Sources { variable: &|_| Some(String::new()), file: &|_| Ok(String::new()) };
    if let Err(problem) = expand::expand(&mut tree.clone(), sources) {
        return vec![problem];
    }
    let mut known = tree.clone();
    known.drop_references();
    let found = match settings_of(&known) {
        Ok(settings) => check::check(&settings, Path::new("/"), &|_| false).err().unwrap_or_default(),
        Err(problem) => vec![problem],
    };
    // Members of lists are counted with those that have references.
    let counted = |problem: ConfigError| ConfigError { path: tree.with_references(&problem.path), ..problem };
    let mut problems: Vec<ConfigError> = found.into_iter().map(counted).collect();
    problems.retain(|one| !one.is_local && !tree.at(&one.path).is_some_and(Node::has_reference));
    problems
}

impl ConfigError {
    /// Where it is, as steps from the top.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.path
    }

    /// A complaint about a place in another file.
    pub(crate) fn elsewhere(place: Place, path: Vec<Step>, message: String) -> Self {
        Self { place: Some(place), path, message, is_local: false }
    }

    /// What is wrong there.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

/// A path in words: `routes[0].pool`.
pub(crate) fn path_of(steps: &[Step]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Step::Index(index) => path.push_str(&format!("[{index}]")),
            Step::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                // What is no name may be a value that went astray.
                path.push_str(if tree::is_plain_name(key) { key } else { "…" });
            }
        }
    }
    path
}

/// The name alone: values may be secrets.
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

/// One line for each complaint: `file:line:column: path: message`.
struct Complaints<'a>(&'a str, &'a [ConfigError]);

impl fmt::Display for Complaints<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name, problems) = self;
        for (index, problem) in problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(name)?;
            if let Some(place) = problem.place {
                write!(f, ":{}:{}", place.line, place.column)?;
            }
            write!(f, ": {problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", path_of(&self.path))?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}
