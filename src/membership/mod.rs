//! The table's owner: one task a pool. Discovery's sets and backends' health come in, the published table goes out.
//!
//! [`state`] decides, a blocking thread builds, the task here publishes and tells. Dispatch and the admin pages only read.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
    time::Instant,
};

use crate::{
    discovery::EndpointsReceiver,
    lifecycle::Tasks,
    ring::{self, RingError, Table},
};

pub mod metrics;
pub mod state;

use metrics::Metrics;
use state::{Change, Input, Rebuild, State};

/// What is published: `None` until the first good answer of discovery.
pub type Tables = watch::Receiver<Option<Arc<Table>>>;

/// How many backends one log line names before it counts the rest.
const NAMED_IN_LOG: usize = 20;

/// One pool's membership, as its task holds it.
struct Room {
    pool: Arc<str>,
    state: State,
    endpoints: EndpointsReceiver,
    tables: watch::Sender<Option<Arc<Table>>>,
    metrics: Metrics,
}

#[derive(Debug, thiserror::Error)]
enum BuildError {
    #[error("this set of backends has no placement")]
    Ring(#[source] RingError),
    #[error("the thread that built the ring ended early")]
    Thread(#[source] JoinError),
}

/// Starts the task of `pool`, which ends when `tasks` are stopped.
pub fn start(pool: &str, config: ring::Config, endpoints: EndpointsReceiver, tasks: &Tasks) -> Tables {
    let (sender, tables) = watch::channel(None);
    let pool: Arc<str> = pool.into();
    let room =
        Room { metrics: Metrics::new(&pool), pool, state: State::new(config.algorithm), endpoints, tables: sender };
    let until = tasks.clone();
    tasks.spawn(async move { room.run(&until).await });
    tables
}

impl Room {
    async fn run(mut self, until: &Tasks) {
        // What discovery published before this task began counts as news too.
        self.endpoints.mark_changed();
        loop {
            let input = tokio::select! {
                biased;
                // First: a process that ends needs no further table.
                () = until.stopped() => return,
                input = discovered(&mut self.endpoints) => input,
            };
            if let Some(rebuild) = self.state.apply(input) {
                self.rebuild(rebuild).await;
            }
        }
    }

    /// Builds on a blocking thread; meanwhile inputs wait, of which the watch channel keeps the newest only.
    async fn rebuild(&mut self, rebuild: Rebuild) {
        let begun = Instant::now();
        let built = spawn_blocking(|| rebuild.run()).await;
        match built.map_err(BuildError::Thread).and_then(|built| built.map_err(BuildError::Ring)) {
            Ok(change) => self.publish(change, begun.elapsed()),
            Err(error) => {
                self.state.revert();
                let cause: &dyn std::error::Error = &error;
                let source = cause.source().map(ToString::to_string);
                tracing::error!(pool = %self.pool, %error, source, "keeping the ring as it is");
            }
        }
    }

    fn publish(&mut self, change: Change, took: Duration) {
        self.state.commit(&change);
        self.metrics.show(&change.table, change.moved, took);
        tell(&self.pool, &change);
        self.tables.send_replace(Some(change.table));
    }
}

/// The next set of discovery; never, once discovery has ended.
///
/// Cancel safety: the channel keeps what was not taken.
async fn discovered(endpoints: &mut EndpointsReceiver) -> Input {
    loop {
        if endpoints.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if let Some(set) = &*endpoints.borrow_and_update() {
            return Input::Discovered(Arc::clone(set));
        }
    }
}

/// One line for each change.
fn tell(pool: &str, change: &Change) {
    let table = &change.table;
    tracing::info!(
        pool,
        cause = change.cause.as_str(),
        generation = table.generation,
        backends = table.backends().len(),
        away = table.overlay().away().len(),
        added = names(&change.added()),
        removed = names(&change.removed()),
        moved = format_args!("{:.4}", change.moved),
        membership_fingerprint = format_args!("{:012x}", table.membership_fingerprint()),
        placement_fingerprint = format_args!("{:012x}", table.placement_fingerprint()),
        "ring changed"
    );
}

fn names(identities: &[Arc<str>]) -> String {
    let mut names: Vec<&str> = identities.iter().take(NAMED_IN_LOG).map(|identity| &**identity).collect();
    let rest = identities.len().saturating_sub(NAMED_IN_LOG);
    let more = format!("and {rest} more");
    if rest > 0 {
        names.push(&more);
    }
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{Endpoint, Endpoints};

    fn endpoints(identities: &[&str]) -> Option<Endpoints> {
        let endpoint = |identity: &&str| Endpoint { identity: (*identity).into(), address: None, weight: 1 };
        Some(identities.iter().map(endpoint).collect())
    }

    async fn published(tables: &mut Tables, generation: u64) -> Arc<Table> {
        let is_it = |table: &Option<Arc<Table>>| table.as_ref().is_some_and(|table| table.generation >= generation);
        let table = tables.wait_for(is_it).await.expect("the task must live").clone();
        table.expect("a table was waited for")
    }

    /// The paused clock moves only once nothing else can, blocking threads included.
    async fn settle() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    #[tokio::test]
    async fn tables_follow_discovery_and_end_with_the_process() {
        let tasks = Tasks::new();
        let (discovery, receiver) = watch::channel(None);
        let mut tables = start("tail", ring::Config::default(), receiver, &tasks);
        assert!(tables.borrow().is_none(), "nothing is known yet");
        discovery.send_replace(endpoints(&["a", "b"]));
        let first = published(&mut tables, 1).await;
        discovery.send_replace(endpoints(&["a", "b", "c"]));
        let second = published(&mut tables, 2).await;
        assert_eq!((first.backends().len(), second.backends().len()), (2, 3));
        tasks.stop();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn what_discovery_published_before_the_start_is_taken() {
        let tasks = Tasks::new();
        let (discovery, receiver) = watch::channel(endpoints(&["a"]));
        drop(discovery);
        let mut tables = start("tail", ring::Config::default(), receiver, &tasks);
        assert_eq!(published(&mut tables, 1).await.backends().len(), 1, "must be read though discovery has ended");
        tasks.stop();
        tasks.wait().await;
    }

    #[tokio::test(start_paused = true)]
    async fn neither_an_empty_nor_an_unplaceable_set_replaces_a_table() {
        let tasks = Tasks::new();
        let (discovery, receiver) = watch::channel(endpoints(&["a", "b"]));
        let mut tables = start("tail", ring::Config::default(), receiver, &tasks);
        published(&mut tables, 1).await;
        discovery.send_replace(endpoints(&[]));
        settle().await;
        let mut weightless = endpoints(&["a", "c"]).expect("there are some").to_vec();
        weightless[0].weight = 0;
        discovery.send_replace(Some(weightless.into()));
        settle().await;
        assert_eq!(tables.borrow().as_ref().map(|table| table.generation), Some(1));
        discovery.send_replace(endpoints(&["a", "b", "d"]));
        let table = published(&mut tables, 2).await;
        assert_eq!((table.generation, table.backends().len()), (2, 3));
        tasks.stop();
        tasks.wait().await;
    }

    #[test]
    fn log_lines_name_few_backends_and_count_the_rest() {
        let identities: Vec<Arc<str>> = (0..22).map(|index| index.to_string().into()).collect();
        assert_eq!(names(&identities[..2]), "0,1");
        assert!(names(&identities).ends_with(",19,and 2 more"));
    }
}
