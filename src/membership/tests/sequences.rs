//! Random sequences of eject, return, join and leave, applied to two replicas at different times, in different order, and
//! from different sources.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{
    build::{Cause, Rebuild},
    *,
};
use crate::ring::Table;

const NAMES: [&str; 4] = ["collector-0:4317", "collector-1:4317", "collector-2:4317", "collector-3:4317"];

const SEQUENCES: u64 = 10_000;

const STEPS: usize = 8;

/// One in this many tables is built again from the replica's own previous table, and compared with the one built first.
const BUILT_AGAIN: u64 = 2048;

/// The members, and which of them are away.
type Key = (Vec<Arc<str>>, BTreeSet<Arc<str>>);

/// All tables built so far. Building each one anew would take hours without optimisation.
#[derive(Default)]
struct Tables {
    made: BTreeMap<Key, Arc<Table>>,
    compared: HashSet<(u64, u64)>,
    built_again: u64,
}

/// Where a replica's sets come from.
#[derive(Clone, Copy)]
enum Source {
    /// Address records: the identities are addresses.
    Addresses,
    /// SRV records: the identities are names that stay while their backend is away.
    Names,
    /// EndpointSlices of pods with names, which also list pods that drain.
    Slices,
}

impl Source {
    fn is_stable(self) -> bool {
        !matches!(self, Self::Addresses)
    }

    /// Returns a set of these backends, in any order.
    fn set(self, hosts: &[&str], random: &mut fastrand::Rng) -> Endpoints {
        let is_stable_name = self.is_stable();
        let drains = |name: &&str| !hosts.contains(name) && matches!(self, Self::Slices) && random.bool();
        let draining: Vec<&str> = NAMES.into_iter().filter(drains).collect();
        let of = |names: &[&str], is_draining| -> Vec<Endpoint> {
            let endpoint = |it: &Endpoint| Endpoint { is_stable_name, is_draining, ..it.clone() };
            endpoints(names, 1).iter().map(endpoint).collect()
        };
        let mut set = [of(hosts, false), of(&draining, true)].concat();
        random.shuffle(&mut set);
        set.into()
    }
}

/// One replica: a state, the table it published last, and the backends that changed since.
struct Replica {
    rig: Rig,
    source: Source,
    /// The backends in the last set.
    listed: BTreeSet<Arc<str>>,
    table: Option<Arc<Table>>,
    /// Backends whose own state changed since the last table.
    touched: BTreeSet<Arc<str>>,
}

impl Replica {
    fn new(config: &Config, source: Source, seed: u64) -> Self {
        let mut rig = Rig::new(config.clone());
        rig.state = State::new(config.clone(), fastrand::Rng::with_seed(seed));
        Self { rig, source, listed: BTreeSet::new(), table: None, touched: BTreeSet::new() }
    }

    fn discover(&mut self, hosts: &[&str], tables: &mut Tables, random: &mut fastrand::Rng) {
        let listed = hosts.iter().map(|host| Arc::from(*host)).collect();
        self.touched.extend(self.listed.symmetric_difference(&listed).cloned());
        self.listed = listed;
        self.apply(Input::Discovered(self.source.set(hosts, random)), tables, random);
    }

    fn apply(&mut self, input: Input, tables: &mut Tables, random: &mut fastrand::Rng) {
        let panicked = self.rig.state.is_panicking();
        let Some(rebuild) = self.rig.apply(input) else { return };
        for note in self.rig.take_notes() {
            if let Note::Ejected { identity, .. } | Note::Returned(identity) | Note::Away(identity) = note {
                self.touched.insert(identity);
            }
        }
        if panicked != self.rig.state.is_panicking() {
            // When panic begins or ends, every failing backend changes its state.
            self.touched
                .extend(self.rig.state.states().filter(|it| it.1 == BackendState::Ejected).map(|it| Arc::clone(it.0)));
        }
        let table = tables.of(rebuild, random);
        let change = Change { cause: Cause::Discovery, table: Arc::clone(&table), previous: None, moved: 0.0 };
        self.rig.state.commit(&change, self.rig.now);
        if let Some(before) = &self.table {
            tables.compare(before, &table, &self.touched);
        }
        self.table = Some(table);
        self.touched.clear();
    }

    /// Applies inputs until nothing is in progress: the backends in `dead` stay ejected, all others answer.
    fn settle(&mut self, hosts: &[&str], dead: &BTreeSet<&str>, tables: &mut Tables, random: &mut fastrand::Rng) {
        self.discover(hosts, tables, random);
        // What drained is gone.
        let listed = |it: &Endpoint| Endpoint { is_stable_name: self.source.is_stable(), ..it.clone() };
        let set = endpoints(hosts, 1).iter().map(listed).collect();
        self.apply(Input::Discovered(set), tables, random);
        for host in dead.iter().filter(|host| hosts.contains(host)) {
            self.apply(seen(host, HealthKind::Refused), tables, random);
        }
        for _ in 0..200 {
            while let Some(probe) = self.rig.probes.pop() {
                let answered = !dead.contains(&*probe.identity);
                self.apply(Input::Probed { probe, answered }, tables, random);
            }
            let failing = self.rig.state.states().filter(|it| it.1 == BackendState::Ejected).count();
            if failing == dead.len() && self.rig.members().len() == hosts.len() {
                return;
            }
            self.rig.now = self.rig.timer.expect("something must be in progress").max(self.rig.now);
            self.apply(Input::Timer, tables, random);
        }
        panic!("must settle");
    }

    /// Applies a random input, which the other replica does not see or sees later.
    fn wander(&mut self, tables: &mut Tables, random: &mut fastrand::Rng) {
        let host = NAMES[random.usize(..NAMES.len())];
        let input = match random.u8(..7) {
            0 => return self.discover(&some_of(random), tables, random),
            1 => seen(host, HealthKind::Refused),
            2 => seen(host, HealthKind::Silent("ping")),
            3 => seen(host, HealthKind::Failed("reset")),
            4 => seen(host, HealthKind::Answered),
            5 if !self.rig.probes.is_empty() => {
                let probe = self.rig.probes.remove(random.usize(..self.rig.probes.len()));
                Input::Probed { probe, answered: random.bool() }
            }
            _ => {
                self.rig.now += Duration::from_millis(random.u64(1..4000));
                Input::Timer
            }
        };
        self.apply(input, tables, random);
    }
}

impl Tables {
    fn of(&mut self, rebuild: Rebuild, random: &mut fastrand::Rng) -> Arc<Table> {
        let view = rebuild.view();
        let key: Key =
            (view.endpoints.iter().map(|endpoint| Arc::clone(&endpoint.identity)).collect(), view.away.clone());
        if let Some(made) = self.made.get(&key) {
            if random.u64(..BUILT_AGAIN) == 0 {
                let again = rebuild.run(Instant::now()).expect("placeable").table;
                assert_eq!(again.placement_fingerprint(), made.placement_fingerprint(), "{key:?}");
                self.built_again += 1;
            }
            return Arc::clone(made);
        }
        let table = rebuild.run(Instant::now()).expect("placeable").table;
        self.made.insert(key, Arc::clone(&table));
        table
    }

    /// Asserts that, as long as the membership is the same, only slots of backends move whose own state changed.
    fn compare(&mut self, before: &Table, after: &Table, touched: &BTreeSet<Arc<str>>) {
        if before.membership_fingerprint() != after.membership_fingerprint() {
            return;
        }
        let away = |table: &Table| -> BTreeSet<Arc<str>> {
            let identity = |index: &u16| Arc::clone(&table.backends()[usize::from(*index)].identity);
            table.overlay().away().iter().map(identity).collect()
        };
        let (was, is) = (away(before), away(after));
        let changed: BTreeSet<&Arc<str>> = was.symmetric_difference(&is).collect();
        assert!(changed.iter().all(|identity| touched.contains(*identity)), "{changed:?} was never touched");
        if !self.compared.insert((before.placement_fingerprint(), after.placement_fingerprint())) {
            return;
        }
        let base = before.base().owners();
        for (slot, owner) in (0..).zip(base) {
            let owner = &before.backends()[usize::from(*owner)].identity;
            // A slot of a backend that stays away may get another substitute when its present one goes; no other slot
            // may move.
            let stays = !was.contains(owner) && !is.contains(owner);
            assert!(!stays || before.owner_of_slot(slot) == after.owner_of_slot(slot), "slot {slot} of {owner} moved");
        }
    }
}

fn seen(host: &str, kind: HealthKind) -> Input {
    Input::Seen(HealthEvent { identity: host.into(), kind })
}

/// Returns a random selection of the names, at least one, in their order.
fn some_of(random: &mut fastrand::Rng) -> Vec<&'static str> {
    let mask = random.usize(1..1 << NAMES.len());
    NAMES.iter().enumerate().filter(|(index, _)| mask >> index & 1 == 1).map(|(_, name)| *name).collect()
}

#[test]
fn replicas_with_the_same_view_agree_whatever_came_before() {
    let mut random = fastrand::Rng::with_seed(4);
    let mut tables = Tables::default();
    let (mut panics, mut overlays) = (0, 0);
    for sequence in 0..SEQUENCES {
        let percent = [50, 100, 20][random.usize(..3)];
        let outlier_detection = OutlierDetection { max_ejection_percent: percent, ..OutlierDetection::default() };
        let config = Config { outlier_detection, ..Config::default() };
        let mut replicas = [sequence, !sequence].map(|seed| {
            let source = [Source::Addresses, Source::Names, Source::Slices][random.usize(..3)];
            Replica::new(&config, source, seed)
        });
        for replica in &mut replicas {
            (0..random.usize(..STEPS)).for_each(|_| replica.wander(&mut tables, &mut random));
        }
        let hosts = some_of(&mut random);
        let dead: BTreeSet<&str> = hosts.iter().copied().filter(|_| random.u8(..3) == 0).collect();
        for replica in &mut replicas {
            replica.settle(&hosts, &dead, &mut tables, &mut random);
        }
        let [one, other] = &replicas;
        // Backends that left are part of the past.
        let view = |replica: &Replica| (replica.rig.members(), replica.rig.away());
        assert_eq!(view(one), view(other), "sequence {sequence}");
        let fingerprints = |replica: &Replica| {
            let table = replica.table.as_ref().expect("a table");
            (table.membership_fingerprint(), table.placement_fingerprint())
        };
        assert_eq!(fingerprints(one), fingerprints(other), "sequence {sequence}");
        panics += usize::from(one.rig.state.is_panicking());
        overlays += usize::from(!one.rig.away().is_empty());
    }
    assert!(panics > 500 && overlays > 2000 && tables.built_again > 20, "{panics} {overlays} {}", tables.built_again);
}
