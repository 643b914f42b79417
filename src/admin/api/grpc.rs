//! The messages as gRPC: `spanring.admin.v1.Ring`, with reflection and `grpc.health.v1` beside it.

use std::sync::Arc;

use metrics::Gauge;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, server::NamedService, service::Routes};
use tonic_health::pb::health_server::{HealthServer, SERVICE_NAME as HEALTH_SERVICE};

use super::{
    super::{
        Pools, Readiness, State,
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
    watch::{Place, Watch},
};
use crate::{lifecycle::Tasks, telemetry::metrics::ADMIN_WATCHERS};

/// Watchers at a time; a further one is refused.
pub(super) const MAX_WATCHERS: usize = 16;

/// Largest question: names and IDs are short.
const MAX_QUESTION: usize = 16 << 10;

/// The service over the pools of one process.
#[derive(Clone)]
struct RingService {
    pools: Pools,
    places: Arc<Semaphore>,
    watchers: Gauge,
}

/// All gRPC services of the admin listener, made when one is first asked for: reflection decodes its descriptors.
pub(in super::super) fn routes(state: &State, tasks: &Tasks) -> impl FnOnce() -> Routes + Send + use<> {
    let watchers = metrics::gauge!(ADMIN_WATCHERS);
    watchers.set(0.0);
    let ring = RingService { pools: state.pools.clone(), places: Arc::new(Semaphore::new(MAX_WATCHERS)), watchers };
    let health = health(&state.readiness, tasks);
    || {
        let ring = RingServer::new(ring).max_decoding_message_size(MAX_QUESTION);
        with_reflection(health().add_service(ring), &[pb::DESCRIPTORS], [<RingServer<()> as NamedService>::NAME])
    }
}

/// `grpc.health.v1` and reflection for the port of OTLP/gRPC, whose services are listed; their descriptors are not here.
pub(in super::super) fn health_and_reflection(readiness: &Readiness, tasks: &Tasks) -> Routes {
    with_reflection(health(readiness, tasks)(), &[], otlp_services())
}

/// Adds reflection, which lists the `services`, health and itself, and describes what is in `descriptors` and the latter two.
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
    // Two versions: many clients know only the older one.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => {
            let v1 = v1.max_decoding_message_size(MAX_QUESTION);
            routes.add_service(v1).add_service(v1alpha.max_decoding_message_size(MAX_QUESTION)).prepare()
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "no reflection");
            routes.prepare()
        }
    }
}

/// `grpc.health.v1` alone, for probes.
pub(in super::super) fn health(readiness: &Readiness, tasks: &Tasks) -> impl FnOnce() -> Routes + Send + use<> {
    let health = Health::new(readiness.clone(), tasks.clone());
    || Routes::new(HealthServer::new(health).max_decoding_message_size(MAX_QUESTION))
}

#[tonic::async_trait]
impl Ring for RingService {
    type WatchRingStream = Watch;

    async fn get_ring(&self, request: Request<GetRingRequest>) -> Result<Response<GetRingResponse>, Status> {
        Ok(Response::new(super::ring(&self.pools.current(), &request.get_ref().pool)?))
    }

    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        Ok(Response::new(super::lookup(&self.pools.current(), request.get_ref())?))
    }

    async fn watch_ring(&self, request: Request<WatchRingRequest>) -> Result<Response<Watch>, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| AskError::TooMany(MAX_WATCHERS))?;
        let place = Place::new(place, self.watchers.clone());
        Ok(Response::new(Watch::begin(&self.pools, &request.get_ref().pool, place)?))
    }

    async fn list_backends(
        &self,
        request: Request<ListBackendsRequest>,
    ) -> Result<Response<ListBackendsResponse>, Status> {
        Ok(Response::new(super::backends(&self.pools.current(), &request.get_ref().pool)?))
    }

    async fn list_changes(
        &self,
        request: Request<ListChangesRequest>,
    ) -> Result<Response<ListChangesResponse>, Status> {
        Ok(Response::new(super::changes(&self.pools.current(), &request.get_ref().pool)?))
    }
}

impl From<AskError> for Status {
    fn from(error: AskError) -> Self {
        let message = error.to_string();
        match error {
            AskError::Invalid(_) | AskError::TooLong(_) | AskError::TraceId(_) => Self::invalid_argument(message),
            AskError::NoPool { .. } | AskError::NoRoute { .. } => Self::not_found(message),
            AskError::NoTable { .. } => Self::unavailable(message),
            AskError::TooMany(_) => Self::resource_exhausted(message),
        }
    }
}
