//! A pool's membership whose inputs come from tests of other modules.

use super::*;
use crate::{
    budget::Budget,
    health::{self, Events},
    shortage::Shortage,
};

/// The membership of one pool, whose discovery and deliveries are simulated by the test.
pub(crate) struct Feed {
    pub(crate) published: Published,
    pub(crate) events: Events,
    discovery: watch::Sender<Option<Endpoints>>,
}

/// A prober to which no backend answers.
struct Never;

impl Prober for Never {
    async fn probe(&self, _: &str, _: std::net::SocketAddr, _: &crate::access::Access) -> Result<bool, Shortage> {
        Ok(false)
    }
}

impl Feed {
    pub(crate) fn start(pool: &str, tasks: &Tasks) -> Self {
        let (discovery, endpoints) = watch::channel(None);
        let (events, inbox) = health::channel(pool);
        let published = start(
            pool,
            watch::channel(Config::default()).1,
            endpoints,
            inbox,
            Never,
            Builder::new(Budget::new(0)),
            tasks,
        );
        Self { published, events, discovery }
    }

    /// Publishes these backends. Returns the generation of the resulting table.
    pub(crate) async fn discover(&mut self, hosts: &[&str]) -> u64 {
        self.step(|feed| drop(feed.discovery.send_replace(Some(endpoints(hosts, 1))))).await
    }

    /// Reports that a backend refused a connection. Returns the generation of the resulting table.
    pub(crate) async fn refuse(&mut self, host: &str) -> u64 {
        self.step(|feed| assert!(feed.events.send(&host.into(), HealthKind::Refused), "there must be room")).await
    }

    async fn step(&mut self, act: impl FnOnce(&mut Self)) -> u64 {
        self.published.tables.mark_unchanged();
        act(self);
        self.published.tables.changed().await.expect("the task must live");
        self.published.tables.borrow().as_ref().map_or(0, |table| table.generation)
    }
}
