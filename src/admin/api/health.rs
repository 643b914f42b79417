//! `grpc.health.v1`: SERVING while clients should send here, as `/readyz` says.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream::try_unfold};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tonic::{Request, Response, Status, server::NamedService};
use tonic_health::pb::{self, HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};

use super::super::{Readiness, pb::v1::ring_server::RingServer};
use crate::{lifecycle::Tasks, otlp::Signal};

/// How often a watcher's stream looks at the conditions of readiness.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Watchers at a time, on one listener. A further one hears UNIMPLEMENTED: clients of gRPC then take the server for healthy and
/// send, as they do where health is not served. After any other refusal they would not send until they may watch.
pub(super) const MAX_WATCHERS: usize = 1024;

/// Answers by the conditions of readiness, as they are when it is asked.
#[derive(Clone, Debug)]
pub(super) struct Health {
    readiness: Readiness,
    /// Watches end when these drain.
    tasks: Tasks,
    places: Arc<Semaphore>,
}

/// What one watcher is told.
struct Watching {
    health: Health,
    is_known: bool,
    told: Option<ServingStatus>,
    _place: OwnedSemaphorePermit,
}

impl Health {
    pub(super) fn new(readiness: Readiness, tasks: Tasks) -> Self {
        Self { readiness, tasks, places: Arc::new(Semaphore::new(MAX_WATCHERS)) }
    }

    fn status(&self) -> ServingStatus {
        if self.readiness.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing }
    }
}

#[tonic::async_trait]
impl pb::health_server::Health for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !is_known(&request.get_ref().service) {
            return Err(Status::not_found("no such service; ask for the empty name to hear of the whole process"));
        }
        Ok(Response::new(HealthCheckResponse { status: self.status().into() }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Status::unimplemented(format!("{MAX_WATCHERS} clients watch already, which is the most; use Check"))
        })?;
        // The protocol wants a stream for a service that may come later; here none does.
        let is_known = is_known(&request.get_ref().service);
        let watching = Watching { health: self.clone(), is_known, told: None, _place: place };
        Ok(Response::new(Box::pin(try_unfold(watching, Watching::next))))
    }
}

impl Watching {
    /// The next status that differs from what was told. When the drain begins, an error ends the watch.
    async fn next(mut self) -> Result<Option<(HealthCheckResponse, Self)>, Status> {
        loop {
            // Asked first: readiness is lost before the drain begins, and that is to be told before the end.
            let is_draining = self.health.tasks.is_draining();
            let now = if self.is_known { self.health.status() } else { ServingStatus::ServiceUnknown };
            if self.told != Some(now) {
                self.told = Some(now);
                return Ok(Some((HealthCheckResponse { status: now.into() }, self)));
            }
            if is_draining {
                return Err(Status::unavailable("the process is ending"));
            }
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = self.health.tasks.drained() => {}
            }
        }
    }
}

/// The whole process, the admin service, and the services of the receivers: all of them are ready together.
fn is_known(service: &str) -> bool {
    service.is_empty()
        || service == <RingServer<()> as NamedService>::NAME
        || otlp_services().any(|otlp| otlp == service)
}

/// The services of OTLP/gRPC.
pub(super) fn otlp_services() -> impl Iterator<Item = &'static str> {
    Signal::ALL.into_iter().filter_map(|signal| signal.grpc_path().trim_start_matches('/').split('/').next())
}
