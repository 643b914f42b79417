//! `grpc.health.v1`: SERVING while the proxy is ready for clients, in agreement with `/readyz`.

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

/// How often a watcher's stream evaluates the conditions of readiness.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Limit of concurrent watchers on one listener. A further one gets UNIMPLEMENTED: gRPC clients then take the server
/// for healthy and send, as they do when health is not served. After any other error they would not send until they may
/// watch.
pub(super) const MAX_WATCHERS: usize = 1024;

/// Answers from the conditions of readiness, evaluated at each request.
#[derive(Clone, Debug)]
pub(super) struct Health {
    readiness: Readiness,
    /// Watches end when these tasks drain.
    tasks: Tasks,
    permits: Arc<Semaphore>,
}

/// The state of one watcher's stream.
struct Watching {
    health: Health,
    is_known: bool,
    sent: Option<ServingStatus>,
    _permit: OwnedSemaphorePermit,
}

impl Health {
    pub(super) fn new(readiness: Readiness, tasks: Tasks) -> Self {
        Self { readiness, tasks, permits: Arc::new(Semaphore::new(MAX_WATCHERS)) }
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
            return Err(Status::not_found("no such service; ask for the empty name to check the whole process"));
        }
        Ok(Response::new(HealthCheckResponse { status: self.status().into() }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            Status::unimplemented(format!("{MAX_WATCHERS} clients watch already, which is the limit; use Check"))
        })?;
        // The protocol wants a stream even for an unknown service, which may appear later; here none does.
        let is_known = is_known(&request.get_ref().service);
        let watching = Watching { health: self.clone(), is_known, sent: None, _permit: permit };
        Ok(Response::new(Box::pin(try_unfold(watching, Watching::next))))
    }
}

impl Watching {
    /// Returns the next status that differs from the last one sent. When the drain begins, an error ends the watch.
    async fn next(mut self) -> Result<Option<(HealthCheckResponse, Self)>, Status> {
        loop {
            // The drain is checked first. Readiness is lost before the drain begins, and that status must be sent
            // before the end.
            let is_draining = self.health.tasks.is_draining();
            let now = if self.is_known { self.health.status() } else { ServingStatus::ServiceUnknown };
            if self.sent != Some(now) {
                self.sent = Some(now);
                return Ok(Some((HealthCheckResponse { status: now.into() }, self)));
            }
            if is_draining {
                return Err(Status::unavailable("the process is ending"));
            }
            tokio::select! {
                () = sleep(CHECK_INTERVAL) => {}
                () = self.health.tasks.drained() => {}
            }
        }
    }
}

/// Whether a service can be asked about: the whole process (the empty name), the admin service and the receivers'
/// services. All of them are ready together.
fn is_known(service: &str) -> bool {
    service.is_empty()
        || service == <RingServer<()> as NamedService>::NAME
        || otlp_services().any(|otlp| otlp == service)
}

/// The names of the OTLP/gRPC services.
pub(super) fn otlp_services() -> impl Iterator<Item = &'static str> {
    Signal::ALL.into_iter().filter_map(|signal| signal.grpc_path().trim_start_matches('/').split('/').next())
}
