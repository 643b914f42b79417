//! A dispatch in front of backends.

use std::{net::SocketAddr, sync::Arc};

use tokio::{sync::watch, time::Instant};

use super::{HealthKind, PATIENCE, Tasks, patient, table, wait_until};
use crate::{
    budget::Budget,
    dispatch::{Config, Dispatch, Join, Part, PartOutcome},
    health::{self, Inbox},
    otlp::ClientConnection,
    ring::Table,
    settings::{Delivery, Handoff},
    wall_clock::steady,
};

/// A dispatch in front of backends.
pub(crate) struct Rig {
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) tasks: Tasks,
    pub(crate) events: Inbox,
    /// The account of the memory of its connections.
    pub(crate) budget: Budget,
    tables: watch::Sender<Option<Arc<Table>>>,
}

/// A configuration in which some keys of the pool are not at their defaults.
pub(crate) fn with_keys(change: impl FnOnce(&mut Delivery)) -> Config {
    let mut keys = Delivery::default();
    change(&mut keys);
    keys.into()
}

impl Rig {
    /// A dispatch to `backends`.
    pub(crate) fn start(config: Config, backends: &[SocketAddr]) -> Self {
        let tasks = Tasks::new();
        Self::start_with(config, backends, tasks)
    }

    pub(crate) fn start_with(config: Config, backends: &[SocketAddr], tasks: Tasks) -> Self {
        let (tables, receiver) = watch::channel(Some(table(1, backends, &[])));
        let (sender, events) = health::channel("test");
        let budget = Budget::new(64 << 20);
        let dispatch = Dispatch::start("test", config, receiver, &tasks, sender, budget.clone());
        Self { dispatch, tasks, events, tables, budget }
    }

    /// Publishes a table of other backends and waits until it is in force.
    pub(crate) async fn change(&self, generation: u64, backends: &[SocketAddr]) {
        self.publish(generation, backends, &[]).await;
    }

    /// The same, with the slots of those that are `away` served by others.
    pub(crate) async fn publish(&self, generation: u64, backends: &[SocketAddr], away: &[SocketAddr]) {
        self.tables.send_replace(Some(table(generation, backends, away)));
        wait_until(|| self.dispatch.view().is_some_and(|view| view.table().generation == generation)).await;
    }

    /// The next thing that is said about a backend's health.
    pub(crate) async fn event(&mut self) -> HealthKind {
        patient(self.events.recv()).await.expect("the dispatch must run").kind
    }

    /// Publishes a table that replaces the current one under a hand-off. Those that are `away` need not be members.
    pub(crate) async fn publish_after(&self, generation: u64, backends: &[SocketAddr], away: &[SocketAddr]) {
        let before = Arc::clone(self.dispatch.view().unwrap().table());
        let members_away: Vec<_> = away.iter().copied().filter(|address| backends.contains(address)).collect();
        let table = Arc::into_inner(table(generation, backends, &members_away)).unwrap();
        let lost = away.iter().map(|address| address.to_string().into()).collect();
        let table = table.replacing(&before, steady(Instant::now()), Handoff::default(), &lost);
        self.tables.send_replace(Some(Arc::new(table)));
        wait_until(|| self.dispatch.view().is_some_and(|view| view.table().generation == generation)).await;
    }

    /// Whether nothing more was said about a backend's health.
    pub(crate) fn events_are_quiet(&mut self) -> bool {
        use futures_util::FutureExt;
        self.events.recv().now_or_never().is_none()
    }

    /// The index of a backend in the table.
    pub(crate) fn index_of(&self, address: SocketAddr) -> u32 {
        let view = self.dispatch.view().unwrap();
        let at = view.table().targets().iter().position(|backend| backend.address == Some(address));
        u32::try_from(at.expect("the backend must be in the table")).unwrap()
    }

    /// Submits parts of one new request.
    pub(crate) fn submit(&self, parts: Vec<Part>) -> Join {
        self.submit_from(parts, &Arc::default())
    }

    pub(crate) fn submit_from(&self, parts: Vec<Part>, connection: &Arc<ClientConnection>) -> Join {
        let join = Join::new(Instant::now() + PATIENCE, Arc::clone(connection));
        self.dispatch.view().unwrap().submit(parts, &join).expect("there must be room");
        join
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// The only outcome of a request of one part.
pub(crate) async fn outcome(join: &Join) -> PartOutcome {
    let mut outcomes = patient(join.next()).await;
    assert_eq!(outcomes.len(), 1, "must be one outcome: {outcomes:?}");
    outcomes.remove(0).1
}

pub(crate) fn accepted() -> PartOutcome {
    PartOutcome::Accepted { rejected: 0, message: None }
}
