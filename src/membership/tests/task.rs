//! The task: discovery and events in, tables out, probes beside it.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{
    health::{self, Events},
    shortage::Shortage,
};

/// Cannot ask at first, then answers the next probes with no, so many times each.
#[derive(Clone, Default)]
struct Scripted {
    unasked: usize,
    noes: usize,
    asked: Arc<AtomicUsize>,
}

impl Prober for Scripted {
    async fn probe(&self, _: &str, _: std::net::SocketAddr, _: &crate::access::Access) -> Result<bool, Shortage> {
        let Some(asked) = self.asked.fetch_add(1, Ordering::Relaxed).checked_sub(self.unasked) else {
            return Err(Shortage::Descriptors);
        };
        match asked {
            // Like a stopped process: connected, and silent.
            0 if self.noes > 0 => std::future::pending().await,
            asked => Ok(asked >= self.noes),
        }
    }
}

fn begin(receiver: EndpointsReceiver, tasks: &Tasks) -> (Events, Tables) {
    begin_with(Scripted::default(), receiver, tasks)
}

fn begin_with(prober: Scripted, receiver: EndpointsReceiver, tasks: &Tasks) -> (Events, Tables) {
    let (events, inbox) = health::channel("tail");
    let published = start("tail", watch::channel(Config::default()).1, receiver, inbox, prober, tasks);
    (events, published.tables)
}

fn unresolved(identities: &[&str]) -> Option<Endpoints> {
    let endpoint = |identity: &&str| Endpoint::new(*identity, None);
    Some(identities.iter().map(endpoint).collect())
}

async fn published(tables: &mut Tables, generation: u64) -> Arc<Table> {
    let is_it = |table: &Option<Arc<Table>>| table.as_ref().is_some_and(|table| table.generation >= generation);
    let table = tables.wait_for(is_it).await.expect("the task must live").clone();
    table.expect("a table was waited for")
}

/// The paused clock moves only once nothing else can, blocking threads included.
async fn settle() {
    sleep(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn tables_follow_discovery_and_end_with_the_process() {
    let tasks = Tasks::new();
    let (discovery, receiver) = watch::channel(None);
    let mut tables = begin(receiver, &tasks).1;
    assert!(tables.borrow().is_none(), "nothing is known yet");
    discovery.send_replace(unresolved(&["a", "b"]));
    let first = published(&mut tables, 1).await;
    discovery.send_replace(unresolved(&["a", "b", "c"]));
    let second = published(&mut tables, 2).await;
    assert_eq!((first.backends().len(), second.backends().len()), (2, 3));
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test]
async fn what_discovery_published_before_the_start_is_taken() {
    let tasks = Tasks::new();
    let (discovery, receiver) = watch::channel(unresolved(&["a"]));
    drop(discovery);
    let mut tables = begin(receiver, &tasks).1;
    assert_eq!(published(&mut tables, 1).await.backends().len(), 1, "must be read though discovery has ended");
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn neither_an_empty_nor_an_unplaceable_set_replaces_a_table() {
    let tasks = Tasks::new();
    let (discovery, receiver) = watch::channel(unresolved(&["a", "b"]));
    let mut tables = begin(receiver, &tasks).1;
    published(&mut tables, 1).await;
    discovery.send_replace(unresolved(&[]));
    settle().await;
    let mut weightless = unresolved(&["a", "c"]).expect("there are some").to_vec();
    weightless[0].weight = 0;
    discovery.send_replace(Some(weightless.into()));
    settle().await;
    assert_eq!(tables.borrow().as_ref().map(|table| table.generation), Some(1));
    discovery.send_replace(unresolved(&["a", "b", "d"]));
    let table = published(&mut tables, 2).await;
    assert_eq!((table.generation, table.backends().len()), (2, 3));
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn refused_backend_is_replaced_and_returns_once_a_probe_is_answered() {
    let tasks = Tasks::new();
    let (_discovery, receiver) = watch::channel(Some(endpoints(&["a", "b", "c"], 1)));
    let prober = Scripted { noes: 2, ..Scripted::default() };
    let asked = Arc::clone(&prober.asked);
    let (events, mut tables) = begin_with(prober, receiver, &tasks);
    let first = published(&mut tables, 1).await;
    events.send(&"b".into(), HealthKind::Refused);
    let second = published(&mut tables, 2).await;
    assert_eq!(second.overlay().away().len(), 1);
    assert_eq!(second.membership_fingerprint(), first.membership_fingerprint());
    let third = published(&mut tables, 3).await;
    assert_eq!(asked.load(Ordering::Relaxed), 3, "one probe was silent, one said no, one yes");
    assert_eq!(third.placement_fingerprint(), first.placement_fingerprint());
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_this_process_could_not_send_counts_for_nothing() {
    let returned_after = async |unasked: usize| {
        let tasks = Tasks::new();
        let (_discovery, receiver) = watch::channel(Some(endpoints(&["a", "b", "c"], 1)));
        let prober = Scripted { unasked, ..Scripted::default() };
        let asked = Arc::clone(&prober.asked);
        let (events, mut tables) = begin_with(prober, receiver, &tasks);
        published(&mut tables, 1).await;
        let ejected_at = Instant::now();
        events.send(&"b".into(), HealthKind::Refused);
        published(&mut tables, 3).await;
        assert_eq!(asked.load(Ordering::Relaxed), unasked + 1);
        tasks.stop();
        tasks.wait().await;
        ejected_at.elapsed()
    };
    let longest = Config::default().outlier_detection.base_ejection_time.mul_f64(1.1);
    assert!(returned_after(0).await <= longest);
    // If each counted as failed, the time to the next would double with each.
    assert!(returned_after(5).await <= longest + 6 * UNASKED_PAUSE);
}

#[tokio::test]
async fn stopping_ends_probes_that_run() {
    let tasks = Tasks::new();
    let (_discovery, receiver) = watch::channel(Some(endpoints(&["a", "b", "c"], 1)));
    let prober = Scripted { noes: 1, ..Scripted::default() };
    let asked = Arc::clone(&prober.asked);
    let (events, mut tables) = begin_with(prober, receiver, &tasks);
    published(&mut tables, 1).await;
    events.send(&"b".into(), HealthKind::Refused);
    while asked.load(Ordering::Relaxed) == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    tasks.stop();
    timeout(Duration::from_millis(500), tasks.wait()).await.expect("nothing may wait for a probe");
}
