//! The messages as gRPC: `spanring.admin.v1.Ring`, with reflection and `grpc.health.v1` beside it.

use std::sync::Arc;

use metrics::Gauge;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, service::Routes};
use tonic_health::pb::health_server::HealthServer;

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
    health::Health,
    watch::{Place, Watch},
};
use crate::telemetry::metrics::ADMIN_WATCHERS;

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
pub(in super::super) fn routes(state: &State) -> impl FnOnce() -> Routes + Send + use<> {
    let watchers = metrics::gauge!(ADMIN_WATCHERS);
    watchers.set(0.0);
    let ring = RingService { pools: state.pools.clone(), places: Arc::new(Semaphore::new(MAX_WATCHERS)), watchers };
    let health = health(&state.readiness);
    || {
        let ring = RingServer::new(ring).max_decoding_message_size(MAX_QUESTION);
        with_reflection(health().add_service(ring))
    }
}

fn with_reflection(routes: Routes) -> Routes {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Two versions: many clients know only the older one.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes.add_service(v1).add_service(v1alpha).prepare(),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "no reflection on the admin listener");
            routes.prepare()
        }
    }
}

/// `grpc.health.v1` alone, for probes.
pub(in super::super) fn health(readiness: &Readiness) -> impl FnOnce() -> Routes + Send + use<> {
    let health = Health::new(readiness.clone());
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
