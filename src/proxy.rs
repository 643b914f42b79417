//! Assembly: configuration → every part wired, started and drained in order. The only file that knows everyone.

use std::future::Future;

use tokio::net::TcpListener;

use crate::{admin, config::Config, lifecycle::Tasks, telemetry::Recorder};

/// A running proxy. (A place for the assembly: of all parts only the admin pages are there.)
#[derive(Debug)]
pub struct Proxy {
    readiness: admin::Readiness,
    tasks: Tasks,
}

impl Proxy {
    /// Takes the ports and starts everything.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let (tasks, readiness, recorder) = (Tasks::new(), admin::Readiness::new(), Recorder::install()?);
        recorder.start_upkeep(&tasks);
        if let Some(admin) = config.admin {
            let listener = TcpListener::bind(admin.endpoint).await?;
            admin::serve(listener, admin::State { recorder, readiness: readiness.clone() }, &tasks);
        }
        Ok(Self { readiness, tasks })
    }

    /// Serves until `shutdown` resolves, then drains.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) {
        shutdown.await;
        self.readiness.drain();
        self.tasks.stop();
        self.tasks.wait().await;
    }
}
