//! Sources of rings: the admin address of a running proxy, a configuration file, or backends given on the command line.

use std::{fmt, future::Future, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::timeout;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint as Target},
};

use super::RingToolError;
use crate::{
    admin::{
        MAX_STREAMS,
        api::{self, facts},
        pb::v1::{GetRingRequest, LookupRequest, LookupResponse, PoolRing, ring_client::RingClient},
    },
    config::{Backends, Config, Draft},
    discovery,
    endpoint::{Endpoint, Endpoints},
    ring::{Algorithm, Table},
    settings::{addresses::Backend, values::ValueError},
    tools::admin_address::{AdminAddress, AdminAddressError},
};

/// Default admin address of a proxy.
pub(super) const DEFAULT_ADMIN: &str = "127.0.0.1:8888";

/// Time limit for a request to a proxy and for resolving backends.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Largest number of concurrent look-ups: half of the streams that an admin port takes, since HTTP/2 may still count some that
/// were answered.
const LOOKUPS_AT_A_TIME: usize = MAX_STREAMS as usize / 2;

/// Name of the pool made by `--members`.
const MEMBERS_POOL: &str = "default";

/// Sources of rings. The default is the proxy at [`DEFAULT_ADMIN`].
#[derive(Debug, clap::Args)]
#[group(id = "rings", multiple = false)]
pub(super) struct SourceArgs {
    /// Admin address of a running proxy; may be repeated [default: 127.0.0.1:8888]
    #[arg(long, value_name = "HOST:PORT")]
    admin: Vec<AdminAddress>,
    /// The pools of a configuration file; their backends are resolved once
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A pool as in `spanring --backends`: static://HOST:PORT,… or dns://NAME[:4317]
    #[arg(short, long, value_name = "BACKENDS")]
    backends: Option<Backends>,
    /// A pool of these backends; names are not resolved
    #[arg(long, value_delimiter = ',', value_name = "BACKENDS")]
    members: Vec<Member>,
}

/// The algorithm of a pool that is made by `--members`.
#[derive(Debug, clap::Args)]
pub(super) struct MembersArgs {
    /// How traces are placed on --members [default: slots_v1]
    #[arg(long, value_name = "ALGORITHM", requires = "members", conflicts_with_all = ["admin", "config", "backends"])]
    algorithm: Option<Algorithm>,
}

/// A source of rings.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Admin(AdminAddress),
    Backends(Backends),
    Config(PathBuf),
    Members(Vec<Member>, Algorithm),
}

/// A backend, written as in a static list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member(Backend);

/// The rings of one source.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) from: String,
    /// Whether a proxy runs them. If not, states and overlays are not known.
    pub(super) live: bool,
    pub(super) pools: Vec<PoolRing>,
}

/// Returns the rings of `source`; only that of `pool` if `pool` is not empty.
pub(super) async fn rings(source: &Source, pool: &str) -> Result<Rings, RingToolError> {
    let pools = match source {
        Source::Admin(address) => {
            let request = GetRingRequest { pool: pool.to_owned() };
            answered(address, address.client().await?.get_ring(request)).await?.pools
        }
        source => chosen(source.built().await?, pool)?,
    };
    Ok(Rings { from: source.to_string(), live: matches!(source, Source::Admin(_)), pools })
}

/// Parses trace IDs, so that an invalid one is reported before any proxy is asked.
pub(super) fn parsed(ids: &[String]) -> Result<Vec<facts::TraceId>, RingToolError> {
    let parsed = |id: &String| id.parse().map_err(|error| RingToolError::Usage(format!("{id:?}: {error}")));
    ids.iter().map(parsed).collect()
}

/// Returns the placement of each trace, in the order of `ids`.
pub(super) async fn lookup(
    source: &Source,
    ids: &[facts::TraceId],
    pool: &str,
    signal: &str,
) -> Result<Vec<LookupResponse>, RingToolError> {
    if let Source::Admin(address) = source {
        let client = address.client().await?;
        let asked = ids.iter().map(|id| {
            let (trace_id, pool, signal) = (id.to_string(), pool.to_owned(), signal.to_owned());
            let mut client = client.clone();
            async move { answered(address, client.lookup(LookupRequest { trace_id, pool, signal })).await }
        });
        return stream::iter(asked).buffered(LOOKUPS_AT_A_TIME).try_collect().await;
    }
    let rings = chosen(source.built().await?, pool)?;
    let takes = |ring: &&PoolRing| signal.is_empty() || ring.signals.iter().any(|it| it == signal);
    let rings: Vec<(&PoolRing, Table)> = rings
        .iter()
        .filter(takes)
        .map(|ring| Ok::<_, RingToolError>((ring, table(&source.to_string(), ring)?)))
        .collect::<Result<_, RingToolError>>()?;
    if rings.is_empty() {
        return Err(RingToolError::Usage(format!("{signal} are routed to no pool of {source}")));
    }
    let placed = ids.iter().map(|id| {
        let placement = |(ring, table): &(&PoolRing, Table)| {
            let mut placement = facts::placement(&ring.pool, table, None, id);
            placement.signals = ring.signals.clone();
            placement
        };
        let pools = rings.iter().map(placement).collect();
        LookupResponse { api_version: api::VERSION.into(), trace_id: id.to_string(), pools }
    });
    Ok(placed.collect())
}

/// Builds the table of a ring's members, with all of them healthy.
pub(super) fn table(from: &str, ring: &PoolRing) -> Result<Table, RingToolError> {
    let strange = |what: String| RingToolError::Strange { from: from.to_owned(), pool: ring.pool.clone(), what };
    if ring.members.is_empty() {
        return Err(strange("it has no backends yet".to_owned()));
    }
    let algorithm = Algorithm::from_name(&ring.algorithm)
        .ok_or_else(|| strange(format!("this spanring does not know the algorithm {:?}", ring.algorithm)))?;
    let endpoints: Endpoints = ring
        .members
        .iter()
        .map(|member| {
            let identity = member.identity.as_str();
            let name = Some(member.exporter_name.as_str()).filter(|name| !name.is_empty());
            Endpoint {
                weight: member.weight,
                exporter_name: name.map(Into::into),
                ..Endpoint::new(identity, member.address.parse().ok())
            }
        })
        .collect();
    let table = built(&ring.pool, ring.generation, algorithm, &endpoints)?;
    if format!("{:012x}", table.membership_fingerprint()) != ring.membership_fingerprint {
        return Err(strange("its fingerprint is another than this spanring computes: the versions differ".to_owned()));
    }
    Ok(table)
}

/// Builds the table of `endpoints`.
pub(super) fn built(
    pool: &str,
    generation: u64,
    algorithm: Algorithm,
    endpoints: &Endpoints,
) -> Result<Table, RingToolError> {
    Table::of(generation, algorithm, endpoints).map_err(|source| RingToolError::Ring { pool: pool.to_owned(), source })
}

/// Waits for the answer of a proxy, up to [`ANSWER_WITHIN`].
pub(super) async fn answered<T>(
    address: &AdminAddress,
    question: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, RingToolError> {
    match timeout(ANSWER_WITHIN, question).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(address.refused(&status)),
        Err(_) => Err(RingToolError::Silent { from: address.to_string() }),
    }
}

fn chosen(rings: Vec<PoolRing>, pool: &str) -> Result<Vec<PoolRing>, RingToolError> {
    let known: Vec<&str> = rings.iter().map(|ring| &*ring.pool).collect();
    if !pool.is_empty() && !known.contains(&pool) {
        let known = known.join(", ");
        return Err(RingToolError::Usage(format!("no pool is named {pool:?}; there are: {known}")));
    }
    Ok(rings.into_iter().filter(|ring| pool.is_empty() || ring.pool == pool).collect())
}

// === impl SourceArgs ===

impl SourceArgs {
    pub(super) fn sources(self, of_members: &MembersArgs) -> Vec<Source> {
        if let Some(path) = self.config {
            vec![Source::Config(path)]
        } else if let Some(backends) = self.backends {
            vec![Source::Backends(backends)]
        } else if !self.members.is_empty() {
            vec![Source::Members(self.members, of_members.algorithm.unwrap_or_default())]
        } else if self.admin.is_empty() {
            vec![Source::Admin(AdminAddress::local())]
        } else {
            self.admin.into_iter().map(Source::Admin).collect()
        }
    }
}

// === impl Rings ===

impl Rings {
    /// The error message if it is not clear which of several pools is to be compared with `list`.
    pub(super) fn which_pool(&self, list: &Source) -> String {
        let pools: Vec<&str> = self.pools.iter().map(|ring| &*ring.pool).collect();
        let (from, pools) = (&self.from, pools.join(", "));
        format!("{from} has the pools {pools}; write --pool NAME to compare one of them with {list}")
    }
}

// === impl Source ===

impl Source {
    /// Whether it is one pool that has no name of its own.
    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::Backends(_) | Self::Members(..))
    }

    /// The pool to ask this source for if one of that name is to be compared: the only one, if it is a list.
    pub(super) fn named<'p>(&self, pool: &'p str) -> &'p str {
        if self.is_list() { "" } else { pool }
    }

    /// Builds the rings of a source that is not a running proxy.
    async fn built(&self) -> Result<Vec<PoolRing>, RingToolError> {
        let config = match self {
            Self::Admin(_) => return Ok(Vec::new()),
            Self::Backends(backends) => Draft::of_backends(backends.clone()).check()?,
            Self::Config(path) => Draft::read(path)?.check()?,
            Self::Members(members, algorithm) => {
                let mut endpoints: Vec<Endpoint> = members.iter().map(Member::endpoint).collect();
                endpoints.sort();
                endpoints.dedup_by(|a, b| a.identity == b.identity);
                let table = built(MEMBERS_POOL, 0, *algorithm, &endpoints.into())?;
                return Ok(vec![facts::ring(MEMBERS_POOL, &table, None)]);
            }
        };
        resolved(&config).await
    }
}

/// Builds the rings of a configuration. The backends of each pool are resolved once.
async fn resolved(config: &Config) -> Result<Vec<PoolRing>, RingToolError> {
    let mut rings = Vec::new();
    for pool in &config.pools {
        let endpoints = discovery::resolve_once(&pool.discovery, ANSWER_WITHIN)
            .await
            .map_err(|source| RingToolError::Discovery { pool: pool.name.clone(), source })?;
        let table = built(&pool.name, 0, pool.membership.ring.algorithm, &endpoints)?;
        let mut ring = facts::ring(&pool.name, &table, None);
        let routes = config.routes.iter().filter(|route| route.pool == pool.name);
        ring.signals = routes.flat_map(|route| &route.signals).map(|signal| signal.as_str().to_owned()).collect();
        rings.push(ring);
    }
    Ok(rings)
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("static://") || text.starts_with("dns://") {
            return text.parse().map(Self::Backends).map_err(|error: ValueError| error.to_string());
        }
        if text.ends_with(".yaml") || text.ends_with(".yml") {
            return Ok(Self::Config(text.into()));
        }
        text.parse().map(Self::Admin).map_err(|error: AdminAddressError| error.to_string())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin(address) => address.fmt(f),
            Self::Backends(Backends::Static(list)) => {
                let list: Vec<String> = list.iter().map(ToString::to_string).collect();
                write!(f, "static://{}", list.join(","))
            }
            Self::Backends(Backends::Dns(name)) => write!(f, "dns://{name}"),
            Self::Config(path) => path.display().fmt(f),
            Self::Members(..) => f.write_str("--members"),
        }
    }
}

// === impl AdminAddress ===

impl AdminAddress {
    /// Returns a client with its own connection.
    pub(super) async fn client(&self) -> Result<RingClient<Channel>, RingToolError> {
        self.connected(|target| target).await
    }

    /// Returns a client for a long-lived stream. If nothing was received for `ask_after`, a keep-alive PING checks
    /// whether the connection is still alive.
    pub(super) async fn lasting_client(&self, ask_after: Duration) -> Result<RingClient<Channel>, RingToolError> {
        let keep_alive = |target: Target| {
            target.http2_keep_alive_interval(ask_after).keep_alive_timeout(ask_after).keep_alive_while_idle(true)
        };
        self.connected(keep_alive).await
    }

    async fn connected(&self, set_up: impl Fn(Target) -> Target) -> Result<RingClient<Channel>, RingToolError> {
        let unreachable = |source| RingToolError::Unreachable { from: self.to_string(), source };
        let target = Target::from_shared(format!("http://{self}")).map_err(unreachable)?;
        let channel = set_up(target).connect_timeout(CONNECT_WITHIN).connect().await.map_err(unreachable)?;
        Ok(RingClient::new(channel))
    }

    pub(super) fn refused(&self, status: &Status) -> RingToolError {
        let message = match status.code() {
            Code::Unimplemented => "it serves no spanring.admin.v1.Ring; is it a spanring's admin.endpoint?".to_owned(),
            _ => status.message().to_owned(),
        };
        RingToolError::Refused { from: self.to_string(), message }
    }
}

// === impl Member ===

impl Member {
    pub(super) fn identity(&self) -> Arc<str> {
        self.0.identity().into()
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        let Self(backend) = self;
        let exporter_name = backend.written().map(Into::into);
        Endpoint { exporter_name, ..Endpoint::new(self.identity(), backend.address.address()) }
    }
}

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let backend: Backend = text.trim().parse().map_err(|error: ValueError| error.to_string())?;
        discovery::check_backend(&backend).map_err(|error| error.to_string())?;
        Ok(Self(backend))
    }
}
