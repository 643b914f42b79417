//! The gRPC services: `spanring.admin.v1.Ring`, `grpc.health.v1` and reflection.

use std::sync::Arc;

use metrics::Gauge;
use prost::Message;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, server::NamedService, service::Routes};
use tonic_health::pb::health_server::{HealthServer, SERVICE_NAME as HEALTH_SERVICE};

use super::{
    super::{
        Pools, Readiness, State,
        answers::Answers,
        pb::{
            self,
            v1::{
                GetRingRequest, GetRingResponse, ListBackendsRequest, ListBackendsResponse, ListChangesRequest,
                ListChangesResponse, LookupRequest, LookupResponse, WatchRingRequest,
                ring_server::{Ring, RingServer},
            },
        },
    },
    AskError,
    health::{Health, otlp_services},
    watch::{Watch, WatchPermit},
};
use crate::{lifecycle::Tasks, telemetry::metrics::ADMIN_WATCHERS};

/// Limit of concurrent watchers; a further one is refused.
pub(super) const MAX_WATCHERS: usize = 16;

/// Size limit of request messages, in bytes: names and IDs are short.
const MAX_MESSAGE_SIZE: usize = 16 << 10;

/// The `Ring` service over the pools of this process.
#[derive(Clone)]
struct RingService {
    pools: Pools,
    answers: Arc<Answers>,
    permits: Arc<Semaphore>,
    watchers: Gauge,
}

/// Returns a constructor of all gRPC services of the admin listener. They are built at the first request, since
/// reflection decodes its descriptors.
pub(in super::super) fn routes(
    state: &State,
    answers: &Arc<Answers>,
    tasks: &Tasks,
) -> impl FnOnce() -> Routes + Send + use<> {
    let watchers = metrics::gauge!(ADMIN_WATCHERS);
    watchers.set(0.0);
    let ring = RingService {
        pools: state.pools.clone(),
        answers: Arc::clone(answers),
        permits: Arc::new(Semaphore::new(MAX_WATCHERS)),
        watchers,
    };
    let health = health(&state.readiness, tasks);
    || {
        let ring = RingServer::new(ring).max_decoding_message_size(MAX_MESSAGE_SIZE);
        with_reflection(health().add_service(ring), &[pb::DESCRIPTORS], [<RingServer<()> as NamedService>::NAME])
    }
}

/// `grpc.health.v1` and reflection for the OTLP/gRPC port. Reflection lists OTLP's services but has no descriptors of
/// them.
pub(in super::super) fn health_and_reflection(readiness: &Readiness, tasks: &Tasks) -> Routes {
    with_reflection(health(readiness, tasks)(), &[], otlp_services())
}

/// Adds reflection. It lists `services`, health and itself, and describes `descriptors`, health and itself.
fn with_reflection(
    routes: Routes,
    descriptors: &[&'static [u8]],
    services: impl IntoIterator<Item = &'static str>,
) -> Routes {
    let own = [HEALTH_SERVICE, "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
    let services: Vec<&str> = services.into_iter().chain(own).collect();
    let reflection = || {
        let mut builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        for set in descriptors {
            builder = builder.register_encoded_file_descriptor_set(set);
        }
        services.iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    // Both versions are served, since many clients know only the older one.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => {
            let v1 = v1.max_decoding_message_size(MAX_MESSAGE_SIZE);
            routes.add_service(v1).add_service(v1alpha.max_decoding_message_size(MAX_MESSAGE_SIZE)).prepare()
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "no reflection");
            routes.prepare()
        }
    }
}

/// `grpc.health.v1` alone, for the listener of probes.
pub(in super::super) fn health(readiness: &Readiness, tasks: &Tasks) -> impl FnOnce() -> Routes + Send + use<> {
    let health = Health::new(readiness.clone(), tasks.clone());
    || Routes::new(HealthServer::new(health).max_decoding_message_size(MAX_MESSAGE_SIZE))
}

impl RingService {
    /// Returns an answer that holds its bytes in the account.
    fn holding<M: Message>(&self, message: M) -> Result<Response<M>, Status> {
        let held = self.answers.hold(message.encoded_len()).ok_or(AskError::NoRoom)?;
        let mut response = Response::new(message);
        response.extensions_mut().insert(held);
        Ok(response)
    }
}

#[tonic::async_trait]
impl Ring for RingService {
    type WatchRingStream = Watch;

    async fn get_ring(&self, request: Request<GetRingRequest>) -> Result<Response<GetRingResponse>, Status> {
        self.holding(super::ring(&self.pools.current(), &request.get_ref().pool)?)
    }

    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        Ok(Response::new(super::lookup(&self.pools.current(), request.get_ref())?))
    }

    async fn watch_ring(&self, request: Request<WatchRingRequest>) -> Result<Response<Watch>, Status> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| AskError::TooMany(MAX_WATCHERS))?;
        let permit = WatchPermit::new(permit, self.watchers.clone());
        let pool = &request.get_ref().pool;
        // One message is on its way at a time, about one pool.
        let bytes = super::ring(&self.pools.current(), pool)?.encoded_len();
        let mut response = Response::new(Watch::begin(&self.pools, pool, permit)?);
        response.extensions_mut().insert(self.answers.hold(bytes).ok_or(AskError::NoRoom)?);
        Ok(response)
    }

    async fn list_backends(
        &self,
        request: Request<ListBackendsRequest>,
    ) -> Result<Response<ListBackendsResponse>, Status> {
        self.holding(super::backends(&self.pools.current(), &request.get_ref().pool)?)
    }

    async fn list_changes(
        &self,
        request: Request<ListChangesRequest>,
    ) -> Result<Response<ListChangesResponse>, Status> {
        self.holding(super::changes(&self.pools.current(), &request.get_ref().pool)?)
    }
}

impl From<AskError> for Status {
    fn from(error: AskError) -> Self {
        let message = error.to_string();
        match error {
            AskError::Invalid(_) | AskError::TooLong(_) | AskError::TraceId(_) => Self::invalid_argument(message),
            AskError::NoPool { .. } | AskError::NoRoute { .. } => Self::not_found(message),
            AskError::NoTable { .. } | AskError::NoRoom => Self::unavailable(message),
            AskError::TooMany(_) => Self::resource_exhausted(message),
        }
    }
}
