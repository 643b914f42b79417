//! Tests of the task with discovery's sets and health events as input, tables as output, and probes.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{
    budget::{Budget, Use},
    health::{self, Events},
    shortage::Shortage,
};

/// A prober that cannot send the first `unsent` probes, and to which the backend does not answer the next `unanswered`
/// ones.
#[derive(Clone, Default)]
struct Scripted {
    unsent: usize,
    unanswered: usize,
    asked: Arc<AtomicUsize>,
}

impl Prober for Scripted {
    async fn probe(&self, _: &str, _: std::net::SocketAddr, _: &crate::access::Access) -> Result<bool, Shortage> {
        let Some(asked) = self.asked.fetch_add(1, Ordering::Relaxed).checked_sub(self.unsent) else {
            return Err(Shortage::Descriptors);
        };
        match asked {
            // Like a stopped process: the connection is made and nothing is answered.
            0 if self.unanswered > 0 => std::future::pending().await,
            asked => Ok(asked >= self.unanswered),
        }
    }
}

fn begin(receiver: EndpointsReceiver, tasks: &Tasks) -> (Events, Tables) {
    begin_with(Scripted::default(), receiver, tasks)
}

fn begin_with(prober: Scripted, receiver: EndpointsReceiver, tasks: &Tasks) -> (Events, Tables) {
    let (events, inbox) = health::channel("tail");
    let published = start("tail", watch::channel(Config::default()).1, receiver, inbox, prober, builder(), tasks);
    (events, published.tables)
}

fn builder() -> Builder {
    Builder::new(Budget::new(1 << 30))
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

/// Lets the task finish its work: the paused clock advances only when nothing else can run, blocking threads included.
async fn settle() {
    sleep(Duration::from_secs(3)).await;
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
async fn set_that_was_published_before_the_start_is_used() {
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
    let (discovery, receiver) = watch::channel(Some(endpoints(&["a", "b"], 1)));
    let mut tables = begin(receiver, &tasks).1;
    published(&mut tables, 1).await;
    discovery.send_replace(Some(endpoints(&[], 1)));
    settle().await;
    let mut weightless = endpoints(&["a", "c"], 1).to_vec();
    weightless[0].weight = 0;
    discovery.send_replace(Some(weightless.into()));
    settle().await;
    assert_eq!(tables.borrow().as_ref().map(|table| table.generation), Some(1));
    discovery.send_replace(Some(endpoints(&["a", "b", "d"], 1)));
    let table = published(&mut tables, 2).await;
    assert_eq!((table.generation, table.backends().len()), (2, 3));
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn an_ejection_beside_a_set_that_cannot_be_placed_is_not_lost() {
    let tasks = Tasks::new();
    let (discovery, receiver) = watch::channel(Some(endpoints(&["a", "b", "c"], 1)));
    let prober = Scripted { unanswered: 100, ..Scripted::default() };
    let (events, mut tables) = begin_with(prober, receiver, &tasks);
    published(&mut tables, 1).await;
    let mut weightless = endpoints(&["a", "b", "c", "d"], 1).to_vec();
    weightless[3].weight = 0;
    // Both are there when the task runs next, so it takes both before it builds.
    discovery.send_replace(Some(weightless.into()));
    events.send(&"b".into(), HealthKind::Refused);
    settle().await;
    let table = tables.borrow().clone().expect("a table");
    assert_eq!((table.generation, table.backends().len(), table.overlay().away().len()), (2, 3, 1));
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn refused_backend_is_replaced_and_returns_once_a_probe_is_answered() {
    let tasks = Tasks::new();
    let (_discovery, receiver) = watch::channel(Some(endpoints(&["a", "b", "c"], 1)));
    let prober = Scripted { unanswered: 2, ..Scripted::default() };
    let asked = Arc::clone(&prober.asked);
    let (events, mut tables) = begin_with(prober, receiver, &tasks);
    let first = published(&mut tables, 1).await;
    events.send(&"b".into(), HealthKind::Refused);
    let second = published(&mut tables, 2).await;
    assert_eq!(second.overlay().away().len(), 1);
    assert_eq!(second.membership_fingerprint(), first.membership_fingerprint());
    let third = published(&mut tables, 3).await;
    assert_eq!(asked.load(Ordering::Relaxed), 3, "two probes without an answer and one with it must have run");
    assert_eq!(third.placement_fingerprint(), first.placement_fingerprint());
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn an_ejection_is_on_record_when_its_table_is_published() {
    let tasks = Tasks::new();
    let (_discovery, receiver) = watch::channel(Some(endpoints(&["a", "b", "c"], 1)));
    let (events, inbox) = health::channel("tail");
    let prober = Scripted { unanswered: 100, ..Scripted::default() };
    let configs = watch::channel(Config::default()).1;
    let Published { mut tables, record } = start("tail", configs, receiver, inbox, prober, builder(), &tasks);
    published(&mut tables, 1).await;
    events.send(&"b".into(), HealthKind::Refused);
    published(&mut tables, 2).await;
    assert_eq!(record.standing("b").map(|standing| standing.state), Some(BackendState::Ejected));
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn events_are_gathered_for_a_while_after_the_last_ones_were_applied() {
    let tasks = Tasks::new();
    let (_discovery, receiver) = watch::channel(Some(endpoints(&["a", "b", "c", "d"], 1)));
    let (events, inbox) = health::channel("tail");
    let prober = Scripted { unanswered: 100, ..Scripted::default() };
    let configs = watch::channel(Config::default()).1;
    let Published { mut tables, record } = start("tail", configs, receiver, inbox, prober, builder(), &tasks);
    published(&mut tables, 1).await;
    settle().await;
    let is_ejected = |host: &str| record.standings()[host].state == BackendState::Ejected;
    events.send(&"b".into(), HealthKind::Refused);
    sleep(Duration::from_millis(1)).await;
    assert!(is_ejected("b"), "an event after a quiet time waits for nothing");
    events.send(&"c".into(), HealthKind::Refused);
    sleep(Duration::from_millis(5)).await;
    assert!(!is_ejected("c"));
    sleep(Duration::from_millis(10)).await;
    assert!(is_ejected("c"));
    tasks.stop();
    tasks.wait().await;
}

/// A task that does not run: the test calls what it would do.
fn idle_task(tasks: &Tasks) -> (MembershipTask<Scripted>, Events, Tables) {
    let (sender, tables) = watch::channel(None);
    let (events, inbox) = health::channel("tail");
    let pool: Arc<str> = "tail".into();
    let task = MembershipTask {
        metrics: Metrics::new(&pool),
        record: Record::new(),
        log: ChangeLog::new(&pool),
        pool,
        state: State::new(Config::default(), fastrand::Rng::with_seed(7)),
        configs: watch::channel(Config::default()).1,
        endpoints: watch::channel(None).1,
        inbox,
        prober: Arc::new(Scripted::default()),
        results: mpsc::channel(PROBE_RESULTS),
        probes: Arc::new(Semaphore::new(PROBES)),
        builds: Builds::new(builder()),
        tasks: tasks.clone(),
        tables: sender,
    };
    (task, events, tables)
}

#[tokio::test]
async fn at_most_256_inputs_are_applied_together() {
    let (mut task, events, _tables) = idle_task(&Tasks::new());
    assert!((0..300).all(|_| events.send(&"b".into(), HealthKind::Refused)));
    let lens = [(); 3].map(|()| task.further(Input::Timer).len());
    assert_eq!(lens, [256, 1 + 300 - 255, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_timer_is_due_at_its_time_and_none_is_never_due() {
    let begun = Instant::now();
    due(Some(begun + SECOND)).await;
    assert_eq!(begun.elapsed(), SECOND);
    assert!(timeout(SECOND, due(None)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_table_is_not_published_if_the_one_before_is_right_again() {
    let tasks = Tasks::new();
    let (mut task, _events, tables) = idle_task(&tasks);
    task.handle(vec![Input::Discovered(endpoints(&["a", "b", "c"], 1))]);
    let first = task.builds.next(None).await;
    task.built(first);
    let generation = || tables.borrow().as_ref().map(|table| table.generation);
    assert_eq!(generation(), Some(1));
    task.handle(vec![Input::Seen(HealthEvent { identity: "b".into(), kind: HealthKind::Refused })]);
    let without_b = task.builds.next(task.state.table()).await;
    let address = ([127, 0, 0, 1], 1).into();
    let probe = Probe { identity: "b".into(), address, access: crate::access::Access::default() };
    task.handle(vec![Input::Probed { probe, answered: true }]);
    task.built(without_b);
    assert_eq!(generation(), Some(1), "`b` answered while the table without it was built");
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_could_not_be_sent_does_not_count_as_failed() {
    let returned_after = async |unsent: usize| {
        let tasks = Tasks::new();
        let (_discovery, receiver) = watch::channel(Some(endpoints(&["a", "b", "c"], 1)));
        let prober = Scripted { unsent, ..Scripted::default() };
        let asked = Arc::clone(&prober.asked);
        let (events, mut tables) = begin_with(prober, receiver, &tasks);
        published(&mut tables, 1).await;
        let ejected_at = Instant::now();
        events.send(&"b".into(), HealthKind::Refused);
        published(&mut tables, 3).await;
        assert_eq!(asked.load(Ordering::Relaxed), unsent + 1);
        tasks.stop();
        tasks.wait().await;
        ejected_at.elapsed()
    };
    // An event is handled up to 10 ms after it was sent, and a table is built up to 20 ms after the one before it.
    let longest = Config::default().outlier_detection.base_ejection_time.mul_f64(1.1) + Duration::from_millis(50);
    assert!(returned_after(0).await <= longest);
    // If each of them counted as a failed probe, the time to the next one would double each time.
    assert!(returned_after(5).await <= longest + 6 * PROBE_RETRY_PAUSE);
}

#[tokio::test]
async fn stopping_ends_probes_that_run() {
    let tasks = Tasks::new();
    let (_discovery, receiver) = watch::channel(Some(endpoints(&["a", "b", "c"], 1)));
    let prober = Scripted { unanswered: 1, ..Scripted::default() };
    let asked = Arc::clone(&prober.asked);
    let (events, mut tables) = begin_with(prober, receiver, &tasks);
    published(&mut tables, 1).await;
    events.send(&"b".into(), HealthKind::Refused);
    while asked.load(Ordering::Relaxed) == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    tasks.stop();
    timeout(Duration::from_millis(500), tasks.wait()).await.expect("stopping must not wait for a probe");
}

#[tokio::test(start_paused = true)]
async fn new_configuration_applies_to_a_running_task() {
    let tasks = Tasks::new();
    let (discovery, receiver) = watch::channel(Some(endpoints(&["a", "b"], 1)));
    let (configs, config) = watch::channel(Config::default());
    let (_events, inbox) = health::channel("tail");
    let mut shown = start("tail", config, receiver, inbox, Scripted::default(), builder(), &tasks);
    published(&mut shown.tables, 1).await;
    configs.send_replace(Config { hold_down: Duration::ZERO, ..Config::default() });
    settle().await;
    let removed_at = Instant::now();
    discovery.send_replace(Some(endpoints(&["a"], 1)));
    assert_eq!(published(&mut shown.tables, 2).await.backends().len(), 1);
    assert!(removed_at.elapsed() < Config::default().hold_down, "the new hold_down must be in use");
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn many_ejections_lead_to_few_tables() {
    let tasks = Tasks::new();
    let names: Vec<String> = (0..40).map(|index| format!("collector-{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut sorted = endpoints(&names, 1).to_vec();
    sorted.sort();
    let (_discovery, receiver) = watch::channel(Some(sorted.into()));
    let prober = Scripted { unanswered: usize::MAX, ..Scripted::default() };
    let (events, mut tables) = begin_with(prober, receiver, &tasks);
    published(&mut tables, 1).await;
    // One after the other, as requests notice them: the task handles each by itself.
    for name in &names[..20] {
        events.send(&(*name).into(), HealthKind::Refused);
        sleep(Duration::from_millis(1)).await;
    }
    settle().await;
    let table = tables.borrow().clone().expect("there is a table");
    assert_eq!(table.overlay().away().len(), 20);
    assert!(table.generation <= 4, "{} tables for 20 ejections within 20 ms", table.generation);
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_tables_is_counted_and_never_refused() {
    let tasks = Tasks::new();
    let budget = Budget::new(0);
    let (discovery, receiver) = watch::channel(Some(endpoints(&["a", "b"], 1)));
    let (_events, inbox) = health::channel("tail");
    let configs = watch::channel(Config::default()).1;
    let builder = Builder::new(budget.clone());
    let mut shown = start("tail", configs, receiver, inbox, Scripted::default(), builder, &tasks);
    published(&mut shown.tables, 1).await;
    settle().await;
    let first = budget.used_for(Use::Tables);
    assert!(first > 2 * 131_072, "the owners of all slots alone take that much: {first}");
    discovery.send_replace(Some(endpoints(&["a", "b", "c"], 1)));
    published(&mut shown.tables, 2).await;
    settle().await;
    let second = budget.used_for(Use::Tables);
    assert!((first..2 * first).contains(&second), "{second}: that of the table before must be given back");
    let kept = budget.used_for(Use::KeptTables);
    assert!((2 * 131_072..3 * 131_072).contains(&kept), "{kept}: a hand-off needs the owners of the table before");
    for (number, names) in (3..).zip([["a", "b", "d"], ["a", "c", "e"], ["b", "c", "d"], ["a", "d", "e"]]) {
        discovery.send_replace(Some(endpoints(&names, 1)));
        published(&mut shown.tables, number).await;
        settle().await;
    }
    let many = budget.used_for(Use::KeptTables);
    assert!(many <= 4 * kept, "{many}: without room, tables are merged, and a slot has at most four owners of before");
    tasks.stop();
    tasks.wait().await;
    let held = [Use::Tables, Use::KeptTables].map(|purpose| budget.used_for(purpose));
    assert_eq!(held, [0, 0], "the task gives back what it holds");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_window_does_not_take_the_place_of_a_change_that_waits() {
    let tasks = Tasks::new();
    let (discovery, receiver) = watch::channel(Some(endpoints(&["a", "b"], 1)));
    let (_events, inbox) = health::channel("tail");
    let configs = watch::channel(Config::default()).1;
    let mut shown = start("tail", configs, receiver, inbox, Scripted::default(), builder(), &tasks);
    published(&mut shown.tables, 1).await;
    discovery.send_replace(Some(endpoints(&["a", "b", "c"], 1)));
    published(&mut shown.tables, 2).await;
    sleep(Config::default().ring.handoff.kept_for() - SECOND).await;
    discovery.send_replace(Some(endpoints(&["a", "b", "c", "d"], 1)));
    published(&mut shown.tables, 3).await;
    let third = Instant::now();
    sleep(SECOND / 2).await;
    // It waits until 2 s after the third table. Half a second from now the table before the second one is forgotten.
    discovery.send_replace(Some(endpoints(&["a", "b", "c", "d", "e"], 1)));
    let fourth = published(&mut shown.tables, 4).await;
    assert!(third.elapsed() >= builds::PLANNED_PAUSE, "{:?}", third.elapsed());
    assert_eq!((fourth.backends().len(), fourth.history().len()), (5, 2), "what was due is forgotten with the change");
    let last = shown.record.last_change().expect("a change");
    assert_eq!((last.generation, last.cause, &*last.added.named), (4, Cause::Discovery, &["e".into()][..]));
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn an_ejection_does_not_wait_for_the_pause_between_sets() {
    for in_one_batch in [false, true] {
        let tasks = Tasks::new();
        let (discovery, receiver) = watch::channel(Some(endpoints(&["a", "b", "c"], 1)));
        let prober = Scripted { unanswered: 100, ..Scripted::default() };
        let (events, mut tables) = begin_with(prober, receiver, &tasks);
        published(&mut tables, 1).await;
        settle().await;
        discovery.send_replace(Some(endpoints(&["a", "b", "c", "d"], 1)));
        published(&mut tables, 2).await;
        let second = Instant::now();
        events.send(&"b".into(), HealthKind::Refused);
        if !in_one_batch {
            // The ejection is noticed, and its table is not built yet.
            sleep(Duration::from_millis(15)).await;
        }
        discovery.send_replace(Some(endpoints(&["a", "b", "c", "d", "e"], 1)));
        let third = published(&mut tables, 3).await;
        assert!(second.elapsed() < SECOND / 10, "{:?}, in one batch: {in_one_batch}", second.elapsed());
        assert_eq!((third.overlay().away().len(), third.backends().len()), (1, 5));
        // The set that came along counts for the pause.
        discovery.send_replace(Some(endpoints(&["a", "b", "c", "d", "e", "f"], 1)));
        published(&mut tables, 4).await;
        assert!(second.elapsed() >= builds::PLANNED_PAUSE, "{:?}", second.elapsed());
        tasks.stop();
        tasks.wait().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_window_gives_way_to_any_other_request() {
    for end_comes_first in [true, false] {
        let mut rig = Rig::new(Config::default());
        rig.step(Input::Discovered(endpoints(&["a", "b"], 1)));
        rig.step(Input::Discovered(endpoints(&["a", "b", "c"], 1)));
        rig.now += Config::default().ring.handoff.kept_for();
        let end = rig.apply(Input::Timer).expect("a window ends");
        let change = rig.apply(Input::Discovered(endpoints(&["a", "b", "c", "d"], 1))).expect("a change");
        let requests = if end_comes_first { [end, change] } else { [change, end] };
        let mut builds = Builds::new(builder());
        requests.into_iter().for_each(|request| builds.want(request));
        let (built, _) = builds.next(rig.state.table()).await.expect("placeable");
        assert_eq!((built.cause, built.table.backends().len()), (Cause::Discovery, 4), "{end_comes_first}");
    }
}
