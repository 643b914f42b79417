//! Random histories of requests: tables are replaced under a hand-off while backends accept, refuse, fail, fall silent and
//! are ejected. Whatever happens, what is acknowledged was delivered, and nothing is counted twice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, atomic::AtomicU64},
};

use ::metrics::Counter;
use tokio::{sync::watch, time::sleep};

use super::*;
use crate::{
    dispatch::tests::played::{self, Answer, Players},
    endpoint::{Endpoint, Endpoints},
    ring::{Algorithm, Base, members_of},
    settings::Handoff,
    wall_clock::Moment,
};

/// The number of histories, unless `SPANRING_HISTORIES` says otherwise, and of those that use the same tables.
const HISTORIES: usize = 600;
const PER_CHAIN: usize = 6;

/// The time that clients give a request.
const DEADLINE: Duration = Duration::from_secs(8);

const SECOND: u64 = 1_000_000_000;

/// How a backend behaves.
#[derive(Clone, Copy, Debug)]
enum Temper {
    Well,
    /// Some of its calls fail in some way.
    Sick,
    /// It refuses connections.
    Dead,
}

/// The backends of one history, and what they have got.
struct Cast {
    random: Mutex<fastrand::Rng>,
    tempers: BTreeMap<String, Temper>,
    got: Mutex<Got>,
}

#[derive(Default)]
struct Got {
    /// Spans, and the backend of which the proxy knows that it has accepted them.
    known: BTreeSet<(String, String)>,
    delivered: BTreeSet<String>,
    refused: BTreeSet<String>,
    /// What came again to a backend that the proxy knew to have it.
    repeated: Vec<(String, String)>,
}

impl Cast {
    fn new(backends: &[String], random: &mut fastrand::Rng) -> Self {
        let temper = |random: &mut fastrand::Rng| match random.u8(0..10) {
            0..6 => Temper::Well,
            6..9 => Temper::Sick,
            _ => Temper::Dead,
        };
        let tempers = backends.iter().map(|backend| (backend.clone(), temper(random))).collect();
        Self { random: Mutex::new(random.fork()), tempers, got: Mutex::default() }
    }

    fn got(&self) -> MutexGuard<'_, Got> {
        self.got.lock().expect("nothing panics with it")
    }
}

impl Players for Cast {
    fn connects(&self, backend: &str) -> bool {
        !matches!(self.tempers.get(backend), Some(Temper::Dead) | None)
    }

    fn answer(&self, backend: &str) -> (Answer, Duration) {
        let mut random = self.random.lock().expect("nothing panics with it");
        let time = Duration::from_millis(random.u64(0..400));
        let has_taken = random.bool();
        let answer = match (self.tempers.get(backend), random.u8(0..14)) {
            (Some(Temper::Sick), 0 | 1) => Answer::Reset { has_taken },
            (Some(Temper::Sick), 2 | 3) => Answer::Silent { has_taken },
            (Some(Temper::Sick), 4 | 5) => Answer::Busy,
            (Some(Temper::Sick), 6) => Answer::Unprocessed,
            (Some(Temper::Sick), 7) => Answer::Refuse,
            (Some(Temper::Sick), 8) => Answer::AcceptAllButOne,
            _ => Answer::Accept,
        };
        (answer, time)
    }

    fn received(&self, backend: &str, spans: &[String]) {
        let mut got = self.got();
        let again = spans.iter().map(|span| (span.clone(), backend.to_owned()));
        let again: Vec<_> = again.filter(|pair| got.known.contains(pair)).collect();
        got.repeated.extend(again);
    }

    fn accepted(&self, backend: &str, spans: &[String], is_known: bool) {
        let mut got = self.got();
        for span in spans {
            got.delivered.insert(span.clone());
            if is_known {
                got.known.insert((span.clone(), backend.to_owned()));
            }
        }
    }

    fn refused(&self, _: &str, spans: &[String]) {
        self.got().refused.extend(spans.iter().cloned());
    }
}

/// Tables that replace each other.
#[derive(Default)]
struct Chains {
    bases: HashMap<&'static str, (Endpoints, Arc<Base>)>,
}

impl Chains {
    /// Returns up to five tables, the last changes of which happened a few seconds ago. Some members are away, and some
    /// backends that left fail.
    fn next(&mut self, random: &mut fastrand::Rng) -> Vec<Arc<Table>> {
        let mut at = Moment::now().steady - 12 * SECOND;
        let mut chain: Vec<Arc<Table>> = Vec::new();
        let mut memberships = ["abd", "abd"];
        for generation in 1..=random.u64(2..=5) {
            let chosen = random.choice(["abcd", "abcde", "abd", "bcde", "ace"]).expect("there are some");
            let [older, last] = memberships;
            let letters = if random.bool() { last } else { chosen };
            // What has just joined fails often. Backends that have copies of its records own its slots then.
            let has_joined = |letter: char| letters == last && !older.contains(letter);
            let fails = |letter: &char| random.u8(0..8) < if has_joined(*letter) { 5 } else { 1 };
            let failing: Vec<char> = "abcde".chars().filter(fails).collect();
            memberships = [last, letters];
            let (endpoints, base) = self.base(letters);
            let is_away = |(_, letter): &(u16, char)| failing.contains(letter) && failing.len() < letters.len();
            let away = (0..).zip(letters.chars()).filter(is_away).map(|(at, _)| at).collect();
            let table = Table::new(generation, Arc::clone(&base), base.overlay(&away), endpoints);
            let lost = failing.iter().map(|letter| address_of(*letter).to_string().into()).collect();
            let table = match chain.last() {
                Some(before) => table.replacing(before, at, Handoff::default(), &lost),
                None => table.with_handoff(Handoff::default()),
            };
            chain.push(Arc::new(table));
            at += random.u64(1..=3) * SECOND;
        }
        chain
    }

    fn base(&mut self, letters: &'static str) -> (Endpoints, Arc<Base>) {
        let made = self.bases.entry(letters).or_insert_with(|| {
            let endpoint = |letter: char| Endpoint::new(address_of(letter).to_string(), Some(address_of(letter)));
            let endpoints: Endpoints = letters.chars().map(endpoint).collect();
            let base = Base::build_with(Algorithm::SlotsV1, &members_of(&endpoints)).expect("placeable");
            (endpoints, Arc::new(base))
        });
        (Arc::clone(&made.0), Arc::clone(&made.1))
    }
}

fn address_of(letter: char) -> SocketAddr {
    ([127, 0, 0, 1], 4000 + u16::try_from(u32::from(letter)).expect("a letter")).into()
}

/// What happened in all histories.
#[derive(Default)]
struct Counts {
    acknowledged: u64,
    refused: u64,
    partly: u64,
    copies: Arc<AtomicU64>,
    counted: Arc<AtomicU64>,
    replaced: Arc<AtomicU64>,
    retried: Arc<AtomicU64>,
}

impl Counts {
    fn pipeline(&self, dispatch: &Arc<Dispatch>) -> Pipeline {
        let counter = |count: &Arc<AtomicU64>| Counter::from_arc(Arc::clone(count));
        let mut metrics = SignalMetrics::new("test", Signal::Traces);
        metrics.copies.delivered = counter(&self.copies);
        metrics.copies.counted = counter(&self.counted);
        metrics.replaced = counter(&self.replaced);
        metrics.retried = counter(&self.retried);
        let invalid_trace_id = InvalidTraceIds::default();
        let dispatch = Arc::clone(dispatch);
        let route = Route { invalid_trace_id, pool: "test".to_owned(), dispatch, metrics, _user: None };
        let mut routes = Routes::new(invalid_trace_id);
        routes.by_signal[Signal::Traces.index()] = Some(Arc::new(route));
        Pipeline::new(routes)
    }
}

/// A request whose spans are known by their names.
struct Sent {
    spans: Vec<String>,
    outcome: JoinHandle<(Outcome, Duration)>,
}

/// Sends a request with spans of random traces that started within the last seconds, with names that begin with `name`.
fn send(pipeline: &Arc<Pipeline>, budget: &Budget, name: &str, tasks: &Tasks, random: &mut fastrand::Rng) -> Sent {
    let names: Vec<String> = (0..random.usize(1..=12)).map(|n| format!("{name}{n}")).collect();
    let now = Moment::now().unix;
    let span = |name: &String| {
        let trace_id = random.u128(1..500).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes();
        let start = match random.u8(0..20) {
            0 => 0,
            1 => now + 5 * SECOND,
            _ => now - random.u64(0..40 * SECOND),
        };
        Span { name: name.clone(), trace_id: trace_id.into(), start_time_unix_nano: start, ..Span::default() }
    };
    let scope_spans = vec![ScopeSpans { spans: names.iter().map(span).collect(), ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    let payload = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    let request = Request {
        signal: Signal::Traces,
        message: Framed::copy_from_payload(&payload).expect("small"),
        encoding: None,
        original: None,
        permit: budget.take(payload.len()).expect("room"),
        place: None,
        deadline: Instant::now() + DEADLINE,
        connection: Arc::default(),
        metadata: None,
    };
    let (pipeline, begun) = (Arc::clone(pipeline), Instant::now());
    let outcome = tasks.spawn(async move { (pipeline.export(request).await, begun.elapsed()) });
    Sent { spans: names, outcome }
}

/// Checks the answer to a request.
fn check(spans: &[String], outcome: Outcome, got: &Got, counts: &mut Counts) {
    match outcome {
        Outcome::Accepted { rejected, .. } => {
            let is_missing = |span: &&String| !got.delivered.contains(*span);
            let missing: Vec<&String> = spans.iter().filter(is_missing).collect();
            assert!(missing.len() as u64 <= rejected, "acknowledged and nowhere: {missing:?}, {rejected} rejected");
            assert!(missing.iter().all(|span| got.refused.contains(*span)), "{missing:?} was not refused by a backend");
            let refused = spans.iter().filter(|span| got.refused.contains(*span)).count();
            assert!(rejected <= refused as u64, "{rejected} rejected, and backends refused {refused}");
            counts.acknowledged += 1;
            counts.partly += u64::from(rejected > 0);
        }
        Outcome::Refused(refusal) => {
            // Something that was counted twice, or not at all.
            assert_ne!(refusal.reason, Reason::Internal, "{refusal:?}");
            assert!(
                refusal.retry_after.is_some() || spans.iter().all(|span| got.refused.contains(span)),
                "{refusal:?}"
            );
            counts.refused += 1;
        }
    }
}

/// One history: requests are sent and tables published at random times.
async fn play(chain: &[Arc<Table>], history: usize, counts: &mut Counts, random: &mut fastrand::Rng) {
    let tasks = Tasks::new();
    let backends: Vec<String> = "abcde".chars().map(|letter| address_of(letter).to_string()).collect();
    let cast = Arc::new(Cast::new(&backends, random));
    let first = random.usize(0..chain.len());
    let (tables, receiver) = watch::channel(Some(Arc::clone(&chain[first])));
    let config = with_keys(|keys| {
        keys.timeout = Duration::from_millis(700);
        keys.retry_on_failure.initial_interval = Duration::from_millis(50);
    });
    let (dispatch, _events) = played::start(&cast, config, receiver, &tasks);
    let pipeline = Arc::new(counts.pipeline(&dispatch));
    let budget = Budget::new(1 << 30);
    let mut sent = Vec::new();
    let requests = random.usize(1..=3);
    let mut rest = chain[first + 1..].iter();
    loop {
        if random.bool() && sent.len() < requests {
            sent.push(send(&pipeline, &budget, &format!("{} ", sent.len()), &tasks, random));
        } else if let Some(table) = rest.next() {
            tables.send_replace(Some(Arc::clone(table)));
        } else if sent.len() == requests {
            break;
        }
        sleep(Duration::from_millis(random.u64(0..600))).await;
    }
    for Sent { spans, outcome } in sent {
        let (outcome, took) = outcome.await.expect("must not panic");
        assert!(took <= DEADLINE + Duration::from_secs(1), "history {history}: {took:?}");
        // What is acknowledged was delivered before.
        check(&spans, outcome, &cast.got(), counts);
    }
    let end = Instant::now() + 2 * DEADLINE;
    while budget.used() > 0 || !dispatch.is_idle() {
        assert!(Instant::now() < end, "history {history}: something goes on for ever");
        sleep(Duration::from_millis(100)).await;
    }
    let repeated = std::mem::take(&mut cast.got().repeated);
    assert!(repeated.is_empty(), "history {history}: a backend got again what it had: {repeated:?}");
    tasks.stop();
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_was_delivered_and_nothing_is_counted_twice_in_random_histories() {
    let mut random = fastrand::Rng::with_seed(18);
    let (mut chains, mut counts) = (Chains::default(), Counts::default());
    let histories = std::env::var("SPANRING_HISTORIES").map_or(HISTORIES, |count| count.parse().expect("a number"));
    for first in (0..histories).step_by(PER_CHAIN) {
        // Built anew, since what counts is how long ago its tables were replaced.
        let chain = chains.next(&mut random);
        for history in first..first + PER_CHAIN {
            play(&chain, history, &mut counts, &mut random).await;
        }
    }
    let Counts { acknowledged, refused, partly, copies, counted, replaced, retried } = counts;
    let [copies, counted, replaced, retried] =
        [copies, counted, replaced, retried].map(|count| count.load(Ordering::Relaxed));
    let said = format!(
        "{acknowledged} acknowledged, {partly} of them partly, {refused} refused; {copies} copies, {counted} of them \
         counted, {replaced} placed again, {retried} tried again"
    );
    let most = histories as u64;
    assert!(acknowledged > most && refused > most / 50 && partly > most / 100, "{said}");
    assert!(copies > 2 * most && counted > most / 100 && replaced > most / 10 && retried > most / 10, "{said}");
    assert!(counted <= copies, "{said}");
}
