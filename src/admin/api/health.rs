//! `grpc.health.v1` beside the admin service: SERVING while clients should send here, as `/readyz` says.

use std::{pin::Pin, time::Duration};

use futures_util::Stream;
use tokio::time::sleep;
use tonic::{Request, Response, Status, server::NamedService};
use tonic_health::pb::{self, HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};

use super::super::{Readiness, pb::v1::ring_server::RingServer};
use crate::otlp::Signal;

/// How often a watcher's stream looks at the conditions of readiness.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Answers by the conditions of readiness, as they are when it is asked.
#[derive(Clone, Debug)]
pub(super) struct Health(Readiness);

impl Health {
    pub(super) fn new(readiness: Readiness) -> Self {
        Self(readiness)
    }

    fn status(&self) -> ServingStatus {
        if self.0.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing }
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
        let is_known = is_known(&request.get_ref().service);
        // The protocol wants a stream for a service that may come later; here none does.
        let health = self.clone();
        let status = move || if is_known { health.status() } else { ServingStatus::ServiceUnknown };
        let stream = futures_util::stream::unfold((status, None), async |(status, told)| {
            while told == Some(status()) {
                sleep(LOOK_EVERY).await;
            }
            let now = status();
            Some((Ok(HealthCheckResponse { status: now.into() }), (status, Some(now))))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// The whole process, the admin service, and the services of the receivers: all of them are ready together.
fn is_known(service: &str) -> bool {
    let is_otlp = |signal: Signal| signal.grpc_path().trim_start_matches('/').split('/').next() == Some(service);
    service.is_empty() || service == <RingServer<()> as NamedService>::NAME || Signal::ALL.into_iter().any(is_otlp)
}
