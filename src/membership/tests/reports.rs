//! Tests of the log line of each change of the ring, and of the series of backends that come and go.

use super::*;
use crate::{
    budget::Budget,
    health,
    membership::change_log,
    shortage::Shortage,
    telemetry::{LINGER, Recorder, logs::captured},
};

#[test]
fn every_change_of_the_ring_has_one_log_line_with_its_cause_and_details() {
    let mut rig = Rig::new(Config::default());
    let first = rig.step(Input::Discovered(endpoints(&["a", "b"], 1))).expect("must build");
    let second = rig.step(Input::Discovered(endpoints(&["a", "b", "c"], 1))).expect("must build");
    let refused = HealthEvent { identity: "b".into(), kind: HealthKind::Refused };
    let third = rig.step(Input::Seen(refused)).expect("must build");
    let log =
        captured(|| [&first, &second, &third].into_iter().for_each(|change| change_log::log_change("tail", change)));
    let lines: Vec<&str> = log.lines().collect();
    let line = |change: &Change, cause: &str, backends: usize, away: usize, added: &str| {
        let table = &change.table;
        format!(
            " INFO ring changed pool=\"tail\" cause=\"{cause}\" generation={} backends={backends} away={away} \
             added=\"{added}\" removed=\"\" moved={:.4} membership_fingerprint={:012x} placement_fingerprint={:012x}",
            table.generation,
            change.moved,
            table.membership_fingerprint(),
            table.placement_fingerprint()
        )
    };
    let expected = [
        line(&first, "discovery", 2, 0, "a,b"),
        line(&second, "discovery", 3, 0, "c"),
        line(&third, "ejection", 3, 1, ""),
    ];
    assert_eq!(lines, expected);
    let limited = ChangeLog::new(&"tail".into());
    assert_eq!(captured(|| limited.ring_changed(&third)).trim_end(), expected[2]);
}

#[test]
fn metrics_follow_the_changes_the_notes_and_the_states_of_a_pool() {
    Recorder::scoped(|recorder| {
        let value = |name: &str, labels: &str| {
            let series = format!("spanring_{name}{{pool=\"tail\"{labels}}} ");
            let page = recorder.render();
            page.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok()).unwrap_or_default()
        };
        let mut metrics = Metrics::new(&"tail".into());
        let mut rig = Rig::new(Config::default());
        let changes = [&["a", "b", "c"][..], &["a", "b", "c", "d"]].map(|hosts| {
            let change = rig.step(Input::Discovered(endpoints(hosts, 1))).expect("must build");
            metrics.show(&change, SECOND);
            value("ring_changes_total", "")
        });
        assert_eq!(changes, [0.0, 1.0], "the first table is no change");
        metrics.show_states(&rig.state);
        let mut seen = Vec::new();
        for host in ["a", "b", "c"] {
            rig.take_notes();
            rig.see(host, HealthKind::Refused);
            metrics.show_changed(&rig.state, &rig.notes);
            rig.notes.iter().for_each(|note| metrics.note(note));
            let members = ["active", "ejected"].map(|state| value("ring_members", &format!(",state=\"{state}\"")));
            seen.push((members, value("membership_panic", "")));
        }
        assert_eq!(seen, [([3.0, 1.0], 0.0), ([2.0, 2.0], 0.0), ([1.0, 3.0], 1.0)]);
        let state_of_a = |state: &str| value("membership_backend_state", &format!(",backend=\"a\",state=\"{state}\""));
        assert_eq!(["active", "ejected"].map(state_of_a), [0.0, 1.0]);
        assert_eq!(value("membership_ejections_total", ",reason=\"refused\""), 3.0);
        metrics.note(&Note::Returned("a".into()));
        assert_eq!(value("membership_returns_total", ""), 1.0);
        [true, false, false].into_iter().for_each(|answered| metrics.probed(answered));
        let probes =
            ["answered", "failed"].map(|result| value("membership_probes_total", &format!(",result=\"{result}\"")));
        assert_eq!(probes, [1.0, 2.0]);
    });
}

/// A pool whose discovery is simulated by the test.
struct Pool {
    discovery: watch::Sender<Option<Endpoints>>,
    tables: Tables,
    _events: health::Events,
}

/// A prober that is not used in these tests.
struct Silent;

impl Prober for Silent {
    async fn probe(&self, _: &str, _: std::net::SocketAddr, _: &crate::access::Access) -> Result<bool, Shortage> {
        Ok(false)
    }
}

impl Pool {
    fn start(tasks: &Tasks) -> Self {
        let (discovery, receiver) = watch::channel(None);
        let (events, inbox) = health::channel("tail");
        let config = Config { hold_down: Duration::ZERO, ..Config::default() };
        let tables =
            start("tail", watch::channel(config).1, receiver, inbox, Silent, Builder::new(Budget::new(0)), tasks)
                .tables;
        Self { discovery, tables, _events: events }
    }

    async fn discover(&mut self, hosts: &[&str]) {
        self.discovery.send_replace(Some(endpoints(hosts, 1)));
        let is_it = |table: &Option<Arc<Table>>| table.as_ref().is_some_and(|it| it.backends().len() == hosts.len());
        self.tables.wait_for(is_it).await.expect("the task must live");
    }
}

#[test]
fn series_of_a_backend_fall_to_0_when_it_leaves_and_are_gone_some_time_later() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    Recorder::scoped(|recorder| runtime.block_on(scenario(recorder)));
}

async fn scenario(recorder: &Recorder) {
    let tasks = Tasks::new();
    let mut pool = Pool::start(&tasks);
    let share = |backend: &str| {
        let series = format!("spanring_ring_ownership_ratio{{pool=\"tail\",backend=\"{backend}\"}} ");
        recorder.render().lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok())
    };
    let forget = || {
        let now = Instant::now();
        recorder.sweep(now);
        recorder.sweep(now + LINGER);
    };
    pool.discover(&["a", "b"]).await;
    assert!(share("b").is_some_and(|share| share > 0.4));
    forget();
    pool.discover(&["a"]).await;
    assert_eq!((share("a"), share("b")), (Some(1.0), Some(0.0)));
    assert!(recorder.render().contains("backend=\"b\",state=\"active\"} 0\n"));
    forget();
    assert!(!recorder.render().contains("backend=\"b\""), "{}", recorder.render());
    pool.discover(&["a", "b"]).await;
    assert!(share("b").is_some_and(|share| share > 0.4));
    assert!(recorder.render().contains("backend=\"b\",state=\"active\"} 1\n"));

    tasks.stop();
    tasks.wait().await;
    drop(pool);
    forget();
    assert!(!recorder.render().contains("pool="), "{}", recorder.render());
}
