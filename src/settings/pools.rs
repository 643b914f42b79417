//! The section `pools.NAME`: a set of backends, how they are found, and how parts are placed and delivered.

use std::time::Duration;

use super::{
    addresses::{Backend, OTLP_GRPC_PORT},
    choices::{Algorithm, Compression, HandoffMode, IpFamily, Sizer},
    headers::Headers,
    protocol::Protocol,
    section::{IfWritten, section},
    tls::ClientTls,
    values::{ByteSize, Mebibytes},
};

section! {
    /// `pools.NAME`
    pub struct Pool {
        /// How the backends are found.
        resolver: Resolver,
        /// TLS of the connections to the backends; plaintext without it.
        tls: IfWritten<ClientTls>,
        /// Headers that are added to every call, e.g. `{ x-scope-orgid: one }`. They replace headers of the same name
        /// from clients. Their values are treated as secrets; `${file:…}` keeps them out of the configuration file.
        headers: Headers,
        /// How parts are delivered.
        delivery: Delivery as included,
        /// How traces are placed.
        placement: Placement as included,
    }

    /// `pools.NAME.resolver`: exactly one of its sections.
    pub struct Resolver {
        /// A list.
        r#static: Option<StaticResolver>,
        /// A name whose A and AAAA records are the backends.
        dns: Option<DnsResolver>,
        /// A name whose SRV records name the backends.
        srv: Option<SrvResolver>,
        /// The pods behind a Service of Kubernetes.
        k8s: Option<KubernetesResolver>,
    }

    /// `pools.NAME.resolver.static`: backends by name or address, all of them members whether their names resolve or not.
    #[derive(Eq)]
    pub struct StaticResolver {
        /// The backends, each `host:port`; the port is 4317 where it is missing (4318 with
        /// `protocol: { otlp_http: {} }`). The text as written is what is hashed,
        /// so all replicas must write it alike. One variable may hold the whole list, as YAML or separated by commas:
        /// `${env:BACKENDS}`.
        hostnames: Vec<Backend>,
        /// How often host names in the list are looked up again.
        interval: Duration = RESOLVER_INTERVAL,
        /// How long one look-up may take.
        timeout: Duration = RESOLVER_TIMEOUT,
    }

    /// `pools.NAME.resolver.dns`
    #[derive(Eq)]
    pub struct DnsResolver {
        /// The name whose A and AAAA records are the backends. Search domains apply unless the name ends with a dot.
        hostname: String,
        /// The port of every backend; 4317 where the key is missing (4318 with OTLP/HTTP). The rings of the Collector's exporter hash the port
        /// only if it is written, as the exporter does.
        port: Option<u16>,
        /// How often, ± 10 %, the name is looked up.
        interval: Duration = RESOLVER_INTERVAL,
        /// How long one look-up may take.
        timeout: Duration = RESOLVER_TIMEOUT,
        /// Which records are used: `auto` (A records if there are any, else AAAA), `ipv4`, `ipv6` or `both`.
        ip_family: IpFamily,
    }

    /// `pools.NAME.resolver.srv`
    #[derive(Eq)]
    pub struct SrvResolver {
        /// The name whose SRV records name the backends, their ports and their weights; of a headless Service
        /// `_PORT._tcp.SERVICE.NAMESPACE.svc.cluster.local`, where `PORT` is the name of the Service's port. Search
        /// domains apply unless the name ends with a dot. The name of a target with its port is what is hashed, so a
        /// pod of a StatefulSet keeps its traces when it returns with another address.
        hostname: String,
        /// How often, ± 10 %, the name is looked up.
        interval: Duration = RESOLVER_INTERVAL,
        /// How long one look-up may take.
        timeout: Duration = RESOLVER_TIMEOUT,
    }

    /// `pools.NAME.resolver.k8s`, also written `kubernetes`
    #[derive(Eq)]
    pub struct KubernetesResolver {
        /// The Service whose EndpointSlices are watched: `NAME.NAMESPACE`, or `NAME` in the namespace of the proxy's own
        /// pod (with a kubeconfig, in that of its context). See [Kubernetes](#kubernetes).
        service: String,
        /// The ports of every pod; 4317 where the key is missing (4318 with OTLP/HTTP). Each of them is a backend of its own.
        ports: IfWritten<Vec<u16>>,
        /// How long the API server may take until an answer begins, and for each further page of a list.
        timeout: Duration = RESOLVER_TIMEOUT,
        /// Whether a backend is identified by the host name of its pod, which only the pods of a StatefulSet have:
        /// `true` leaves pods without one out, `false` always uses addresses. If it is not written, pods that have a host
        /// name are identified by it.
        return_hostnames: IfWritten<bool>,
    }
}

/// The time between two rounds of look-ups. It is that of the Collector's DNS resolver.
const RESOLVER_INTERVAL: Duration = Duration::from_secs(5);

/// The time limit of one query to a name server. It is that of the Collector's DNS resolver.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(1);

section! {
    /// The keys of a pool that say how parts are delivered to its backends. When one of them changes, the pool gets new queues
    /// and connections.
    pub struct Delivery {
        /// Compression of calls to backends: `none`, `gzip`, `zstd`, or `as_received`, which compresses the records of
        /// requests that came compressed, with their codec. See [compression](#compression).
        compression: Compression,
        /// Parameters of the compression.
        compression_params: CompressionParams,
        /// The protocol of calls to backends.
        protocol: Protocol,
        /// How long one attempt to deliver may take. A value above `receivers.otlp.deadline` is refused; if the deadline
        /// is shorter than the default, the default becomes the deadline. A backend that answers no call for twice this time
        /// is ejected. See [ejection](#ejection).
        timeout: Duration = Duration::from_secs(5),
        /// The largest message of one call, in MiB before compression. A Collector accepts 4 MiB unless it is
        /// configured otherwise.
        max_request_size_mib: Mebibytes = Mebibytes::of(4),
        /// HTTP/2 connections to each backend, per shard. With OTLP/HTTP `max_conns_per_host` takes its place.
        connections: usize = 1,
        /// Independent sets of queues and connections; each worker thread uses one of them. More than 1 can help where many
        /// threads send to few backends. Parts of different shards never share a call.
        shards: usize = 1,
        /// The queue of parts that wait for a backend.
        sending_queue: SendingQueue,
        /// How failed parts are tried again.
        retry_on_failure: RetryOnFailure,
    }

    /// `pools.NAME.compression_params`
    #[derive(Copy, Eq)]
    pub struct CompressionParams {
        // This is the fastest level of both. Telemetry compresses well even so, and the proxy should use little CPU.
        /// The compression level: 1 to 9 for gzip and `as_received`, 1 to 22 for zstd.
        level: u32 = 1,
    }

    /// `pools.NAME.sending_queue`
    #[derive(Copy, Eq)]
    pub struct SendingQueue {
        /// The unit of `queue_size`. `bytes` is the only value.
        sizer: Sizer,
        /// The size of the queue of each backend, per shard. A request is accepted only if all its parts find room in
        /// their queues; otherwise it is refused whole.
        queue_size: ByteSize = ByteSize(16 << 20),
    }

    /// `pools.NAME.retry_on_failure`
    #[derive(Copy)]
    pub struct RetryOnFailure {
        /// The first wait before a retry. All retries happen within the request's deadline.
        initial_interval: Duration = Duration::from_millis(50),
        /// The longest wait before a retry.
        max_interval: Duration = Duration::from_secs(1),
        /// The factor by which each wait is longer than the one before.
        multiplier: f64 = 1.5,
        /// The share of each wait that is random.
        randomization_factor: f64 = 0.5,
        // One backend of four that refuses half of its calls takes 25 %; one of two takes all of it.
        /// How many retries are allowed: this percentage of the first attempts, plus 10 per second. Parts that move to
        /// another backend because theirs was ejected or left do not count.
        budget_percent: u32 = 50,
    }

    /// The keys of a pool that say where traces are placed, and what happens to backends that fail or leave.
    #[derive(Eq)]
    pub struct Placement {
        /// The hash ring.
        ring: Ring,
        /// When a backend that fails is ejected, so that its traces go elsewhere.
        outlier_detection: OutlierDetection,
        /// How long a backend that has left discovery keeps its traces while it still answers. A backend that fails is
        /// removed at once. One with a stable name (`srv`, `k8s`) gives away its traces then, and stays a member for 60 s
        /// and the time for which a hand-off keeps tables: 105 s by default. For the first minute of an absence discovery
        /// asks every second. If an answer halves the pool, the time is twice as long.
        hold_down: Duration = Duration::from_secs(5),
        /// The least number of backends: if fewer would be left, none that has left discovery or drains is removed. `0` is
        /// no limit.
        min_backends: usize = 0,
    }

    /// `pools.NAME.ring`
    #[derive(Copy, Eq)]
    pub struct Ring {
        /// How traces are placed. It must be the same on all replicas. `otelcol_v1`, `otelcol_v2` and `otelcol_v3` are the
        /// rings of the Collector's load-balancing exporter, to run beside it for a
        /// [migration](migration.md#beside-the-exporter).
        algorithm: Algorithm,
        /// What happens to the traces of slots that move to another backend.
        handoff: Handoff,
    }

    /// `pools.NAME.ring.handoff`. It applies to spans; other signals move at once.
    #[derive(Copy, Eq)]
    pub struct Handoff {
        /// `dual`: a span goes to each backend that owned its trace at any time in the window before the span's start, so
        /// that one of them gets the whole trace. `sticky`: traces that are known to have begun before the change stay
        /// with the old owner, others go to the new one; nothing is sent twice. `immediate`: everything goes to the new
        /// owner.
        mode: HandoffMode,
        /// The longest trace that stays whole, and the time by which replicas learn of a change at different times. The
        /// tail sampler's `decision_wait` is a good value. After this time and 15 s more the table before is forgotten.
        window: Duration = Duration::from_secs(30),
        /// After a change that discovery reports, with `dual`: a root span that starts later than this goes only to the new
        /// owner, since its trace began when all replicas knew of the change. Set it to twice the time by which replicas
        /// learn of a change at different times, plus the difference of clocks; at most `window`. The default is for `k8s`,
        /// whose replicas learn of a change within 3 s. With other resolvers the default is the value of `window`: then no
        /// root span is spared.
        skew: Duration = DEFAULT_SKEW,
    }

    /// `pools.NAME.outlier_detection`
    #[derive(Eq)]
    pub struct OutlierDetection {
        /// After how many transport failures in a row a backend is ejected. See [ejection](#ejection).
        consecutive_failures: u32 = 3,
        /// Time, ± 10 %, after which an ejected backend is probed. It doubles after each failed probe and with each
        /// further ejection.
        base_ejection_time: Duration = Duration::from_secs(1),
        /// The longest time between two probes. A backend that has stayed healthy for this long starts again at
        /// `base_ejection_time`.
        max_ejection_time: Duration = Duration::from_secs(30),
        /// The largest share of the pool that may be ejected at once (at least one backend, never all). When more fail,
        /// none is, and all keep their slots. `0` switches ejection off.
        max_ejection_percent: u8 = 50,
    }
}

/// The default of `skew` with a Kubernetes watch: twice the second until a change arrives and the 2 s that it waits if it comes
/// right after another one, and 4 s for clocks and builds.
const DEFAULT_SKEW: Duration = Duration::from_secs(10);

/// The time after its start within which a span arrives if nothing delays it. A span that arrives later goes also to the
/// owners since its start, since the table that it began with may be forgotten soon.
pub const USUAL_DELAY: Duration = Duration::from_secs(15);

impl Handoff {
    /// Returns how long a table is kept after it was replaced.
    pub fn kept_for(&self) -> Duration {
        match self.mode {
            HandoffMode::Immediate => Duration::ZERO,
            HandoffMode::Dual | HandoffMode::Sticky => self.window.saturating_add(USUAL_DELAY),
        }
    }
}

impl DnsResolver {
    /// The port of every backend.
    pub fn port_in_effect(&self) -> u16 {
        self.port.unwrap_or(OTLP_GRPC_PORT)
    }
}

impl KubernetesResolver {
    /// The ports of every pod.
    pub fn ports_in_effect(&self) -> &[u16] {
        self.ports.as_deref().unwrap_or(&[OTLP_GRPC_PORT])
    }
}

impl Resolver {
    /// The same with `port` for each backend that has none.
    #[must_use]
    pub fn with_default_port(&self, port: u16) -> Self {
        let mut resolver = self.clone();
        if let Some(keys) = &mut resolver.r#static {
            keys.hostnames.iter_mut().for_each(|backend| backend.set_default_port(port));
        }
        if let Some(keys) = resolver.dns.as_mut().filter(|_| port != OTLP_GRPC_PORT) {
            keys.port.get_or_insert(port);
        }
        if let Some(keys) = resolver.k8s.as_mut().filter(|_| port != OTLP_GRPC_PORT) {
            keys.ports.0.get_or_insert_with(|| vec![port]);
        }
        resolver
    }
}

impl Delivery {
    /// The most connections to one backend, per shard.
    pub fn max_connections(&self) -> usize {
        self.protocol.http().map_or(self.connections, |http| http.max_conns_per_host).max(1)
    }

    /// The most sockets that one backend needs at once, per shard: one besides its connections probes it. With OTLP/HTTP one more
    /// is kept open for a call whose clients have left.
    pub fn max_sockets(&self) -> usize {
        self.max_connections() + if self.protocol.http().is_some() { 2 } else { 1 }
    }

    /// The same with the default of each key that has no effect, so that deliveries that do the same are equal.
    #[must_use]
    pub fn in_effect(&self) -> Self {
        let compression_params = match self.compression {
            Compression::None => CompressionParams::default(),
            Compression::AsReceived | Compression::Gzip | Compression::Zstd => self.compression_params,
        };
        let protocol = self.protocol.in_effect();
        let connections = if protocol.http().is_some() { Self::default().connections } else { self.connections };
        Self { compression_params, protocol, connections, ..self.clone() }
    }
}
