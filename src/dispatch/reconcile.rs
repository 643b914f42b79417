//! Keeps the backends of a pool in line with its tables: keeps those that stay, creates new ones, and lets those that have left
//! the table finish.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{
    Config,
    backend::{Backend, Load, Shared},
    submit::View,
};
use crate::ring::{Table, Tables};

/// Interval at which the gauges are set. Delivering parts does not touch them.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// The identity and the address of a backend. A backend stays while these, its access and the configuration are unchanged.
type Key = (Arc<str>, Option<SocketAddr>);

/// Owns the backends of a pool.
pub(super) struct Reconciler {
    shared: Arc<Shared>,
    view: Arc<ArcSwapOption<View>>,
    tables: Tables,
    configs: watch::Receiver<Config>,
    /// Backends that have left the table or have an outdated configuration, and are not idle yet.
    leaving: Vec<Arc<Backend>>,
}

impl Reconciler {
    pub(super) fn new(
        shared: Arc<Shared>,
        view: Arc<ArcSwapOption<View>>,
        tables: Tables,
        configs: watch::Receiver<Config>,
    ) -> Self {
        Self { shared, view, tables, configs, leaving: Vec::new() }
    }

    /// Runs until the tasks are stopped. Then hands back all waiting parts.
    pub(super) async fn run(mut self) {
        let tasks = self.shared.tasks.clone();
        let mut ticks = tokio::time::interval(SAMPLE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut followed, mut configured) = (true, true);
        loop {
            tokio::select! {
                // Checks for the stop first, so that nothing is begun after it.
                biased;
                () = tasks.stopped() => break,
                changed = self.tables.changed(), if followed => match changed {
                    Ok(()) => self.follow(),
                    // Membership has ended. The last table stays in use.
                    Err(_) => followed = false,
                },
                changed = self.configs.changed(), if configured => match changed {
                    Ok(()) => self.reconfigure(),
                    Err(_) => configured = false,
                },
                _ = ticks.tick() => self.sample(),
            }
        }
        // The list is emptied too: backends hold the shared data and the shared data holds the list, so they would never be
        // freed, and neither would their series.
        self.shared.all.swap(Arc::default()).iter().for_each(|backend| backend.stop());
    }

    /// Publishes a view of the newest table, if it is not published yet.
    pub(super) fn follow(&mut self) {
        let Some(table) = self.tables.borrow_and_update().clone() else { return };
        if !self.view.load().as_ref().is_some_and(|old| Arc::ptr_eq(old.table(), &table)) {
            self.publish(table);
        }
    }

    /// Applies the newest configuration: new backends replace all present ones, which finish their parts.
    fn reconfigure(&mut self) {
        self.shared = self.shared.reconfigured(self.configs.borrow_and_update().clone());
        if let Some(view) = self.view.load_full() {
            self.publish(Arc::clone(view.table()));
        }
    }

    fn publish(&mut self, table: Arc<Table>) {
        let old = self.view.load_full();
        let (view, gone) = next_view(&self.shared, old.as_deref(), table);
        self.leaving.extend(gone.iter().cloned());
        let view = Arc::new(view);
        self.set_all(&view);
        view.readmit();
        self.view.store(Some(Arc::clone(&view)));
        // Ejecting comes after the view is published, so that parts which are handed back are placed by the new table.
        gone.iter().for_each(|backend| backend.health.pulse.list(false));
        view.backends().for_each(|backend| backend.health.pulse.list(true));
        gone.iter().for_each(|backend| backend.close());
        view.eject();
        self.shared.changes.send_replace(view.table().generation);
    }

    fn set_all(&self, view: &View) {
        let all = view.backends().chain(&self.leaving).cloned().collect();
        self.shared.all.store(Arc::new(all));
    }

    /// Sets the gauges, and drops backends that have left the table and are idle.
    fn sample(&mut self) {
        let Some(view) = self.view.load_full() else { return };
        // The gauges show sums, because the shards of a backend share its series, and so do a backend and its replacement.
        let mut sums: HashMap<&str, (&Backend, Load)> = HashMap::new();
        for backend in view.backends().chain(&self.leaving) {
            let load = backend.load();
            let (_, sum) = sums.entry(&backend.peer.identity).or_insert((backend, Load::default()));
            sum.waiting_bytes += load.waiting_bytes;
            sum.calls += load.calls;
            sum.call_bytes += load.call_bytes;
            sum.connections += load.connections;
        }
        for (backend, sum) in sums.into_values() {
            backend.metrics.set(sum);
        }
        let left = self.leaving.len();
        self.leaving.retain(|backend| !backend.is_idle());
        if self.leaving.len() != left {
            self.set_all(&view);
        }
    }
}

/// Returns the view of `table` with the backends of `old` that stay, and the backends of `old` that do not.
fn next_view(shared: &Arc<Shared>, old: Option<&View>, table: Arc<Table>) -> (View, Vec<Arc<Backend>>) {
    let shards = shared.config.keys.shards.max(1);
    let mut kept: HashMap<Key, Vec<Arc<Backend>>> = HashMap::new();
    for backend in old.into_iter().flat_map(View::backends) {
        kept.entry((Arc::clone(&backend.peer.identity), backend.peer.address)).or_default().push(Arc::clone(backend));
    }
    let mut gone = Vec::new();
    let mut by_shard: Vec<Vec<Arc<Backend>>> = vec![Vec::with_capacity(table.targets().len()); shards];
    for endpoint in table.targets().iter() {
        let mine = kept.remove(&(Arc::clone(&endpoint.identity), endpoint.address)).unwrap_or_default();
        // All shards of a backend share its pulse, because an answer to one of them shows that the backend is alive.
        let pulse = mine.first().map(|backend| Arc::clone(&backend.health.pulse)).unwrap_or_default();
        let (mut mine, outdated): (Vec<_>, Vec<_>) = mine
            .into_iter()
            .partition(|backend| Arc::ptr_eq(&backend.shared, shared) && backend.peer.access == endpoint.access);
        gone.extend(outdated);
        for shard in &mut by_shard {
            shard.push(mine.pop().unwrap_or_else(|| Backend::new(endpoint, shared, Arc::clone(&pulse))));
        }
    }
    let shards = by_shard.into_iter().map(Vec::into_boxed_slice).collect();
    let view = View::new(table, shards, &shared.config);
    gone.extend(kept.into_values().flatten());
    (view, gone)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::watch;

    use super::*;
    use crate::{
        budget::Budget,
        dispatch::{Config, link::Network},
        health,
        lifecycle::Tasks,
        testing::table,
    };

    #[tokio::test]
    async fn a_backend_that_the_current_view_serves_is_never_away() {
        let addresses: Vec<SocketAddr> = (4001..4051).map(|port| ([127, 0, 0, 1], port).into()).collect();
        let tables = [&[][..], &addresses[49..]].map(|away| table(1, &addresses, away));
        let (sender, receiver) = watch::channel(None);
        let network = Arc::new(Network(Budget::new(1 << 20)));
        let shared = Shared::new("test", Config::default(), &Tasks::new(), health::channel("test").0, network);
        let shown = Arc::new(ArcSwapOption::empty());
        let (_configs, configs) = watch::channel(Config::default());
        let mut reconciler = Reconciler::new(shared, Arc::clone(&shown), receiver, configs);
        let done = AtomicBool::new(false);
        // Reads the view and then the state of a backend, as a request does. If the view is still current, they must agree.
        let look = || {
            let mut wrong = 0;
            while !done.load(Ordering::Relaxed) {
                let Some(view): Option<Arc<View>> = shown.load_full() else { continue };
                let backend = view.backends().last().expect("there are fifty");
                let turned_back = view.serves(&backend.peer.identity) && backend.away().is_some();
                let is_shown = shown.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, &view));
                wrong += u32::from(turned_back && is_shown);
            }
            wrong
        };
        let wrong = std::thread::scope(|scope| {
            let looking = scope.spawn(look);
            for table in tables.iter().cycle().take(4_000) {
                sender.send_replace(Some(Arc::clone(table)));
                reconciler.follow();
            }
            done.store(true, Ordering::Relaxed);
            looking.join().expect("must not panic")
        });
        assert_eq!(wrong, 0, "the current view must not serve a backend that is away");
    }
}
