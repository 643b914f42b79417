//! Tests of the transport without queues. The test is both the source of the calls and the backend.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use tokio::{net::TcpStream, task::JoinHandle, time::Instant};

use super::{Contents, Event, Failure, GIVE_UP, Peer, QUEUE, Scope, Verdict, Wakeups, Work, serve};
use crate::{
    endpoint::Endpoint,
    lifecycle::Tasks,
    otlp::{Framed, Metadata, Signal},
    settings::Delivery,
    testing::{accept_h2, listen, patient, trailers_only, wait_until},
};

/// The messages of one call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Messages(pub(super) Vec<Framed>);

impl Contents for Messages {
    type Held = ();

    fn signal(&self) -> Signal {
        Signal::Traces
    }

    fn metadata(&self) -> Option<&Metadata> {
        None
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn payload_len(&self) -> usize {
        self.0.iter().map(Framed::payload_len).sum()
    }

    fn messages(&self) -> impl ExactSizeIterator<Item = &Framed> {
        self.0.iter()
    }

    fn hold(&self) {}
}

/// A source of calls for a connection.
struct TestWork {
    peer: Peer,
    state: Arc<Mutex<State>>,
}

/// The calls to send, and what the connection reported.
#[derive(Default)]
pub(super) struct State {
    pub(super) waiting: VecDeque<Messages>,
    pub(super) begun: usize,
    done: Vec<(Messages, Verdict)>,
    pub(super) events: Vec<&'static str>,
    failure: Option<Failure>,
    wakeups: Option<Arc<Wakeups>>,
    pub(super) is_given_up: bool,
    pub(super) is_finished: bool,
}

impl TestWork {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Work for TestWork {
    type Contents = Messages;

    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn waits(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    fn take(&mut self, _now: Instant) -> Option<Messages> {
        self.state().waiting.pop_front()
    }

    fn began(&mut self, _contents: &Messages, _now: Instant) {
        self.state().begun += 1;
    }

    fn done(&mut self, contents: Messages, started: Option<Instant>, verdict: Verdict, _now: Instant) {
        assert!(started.is_some(), "every call of these tests can begin");
        self.state().done.push((contents, verdict));
    }

    fn is_given_up(&mut self) -> bool {
        self.state().is_given_up
    }

    fn is_finished(&self) -> bool {
        self.state().is_finished
    }

    fn note(&mut self, event: Event) {
        let mut state = self.state();
        let name = match event {
            Event::Connected(wakeups) => {
                state.wakeups = Some(wakeups);
                "connected"
            }
            Event::Closed => "closed",
            Event::NotConnected(failure) => {
                state.failure = Some(failure);
                "not connected"
            }
            Event::Answered => "answered",
            Event::Unanswered(_) => "unanswered",
            Event::Left => "left",
            Event::Writing => "writing",
            Event::Written => "written",
            Event::InDoubt => "in doubt",
            Event::Ended { failure, lost } => {
                state.failure = failure;
                if lost { "ended with calls" } else { "ended" }
            }
            Event::GaveUp => "gave up",
            Event::Stopped => "stopped",
        };
        state.events.push(name);
    }
}

/// A connection that is being served.
pub(super) struct Served {
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
    pub(super) tasks: Tasks,
}

impl Served {
    /// Serves a connection to `address`. Each message of `waiting` is to be sent in one call.
    fn start(address: SocketAddr, waiting: &[&[u8]]) -> Self {
        Self::start_with(address, waiting, &Delivery::default())
    }

    /// The same with these keys of the pool.
    pub(super) fn start_with(address: SocketAddr, waiting: &[&[u8]], keys: &Delivery) -> Self {
        let waiting = waiting.iter().map(|payload| message(payload)).collect();
        let state = Arc::new(Mutex::new(State { waiting, ..State::default() }));
        let endpoint = Endpoint::new(address.to_string(), Some(address));
        let peer = Peer::new(&endpoint, keys, 4);
        let tasks = Tasks::new();
        let serving = tasks.spawn(serve(TestWork { peer, state: Arc::clone(&state) }, tasks.clone()));
        Self { state, serving, tasks }
    }

    pub(super) fn with_state<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        action(&mut self.state.lock().unwrap())
    }

    pub(super) fn wake(&self, bit: u64) {
        let wakeups = self.with_state(|state| state.wakeups.clone()).expect("must be connected");
        wakeups.wake(bit);
    }

    /// Waits until `count` calls have ended. Returns their verdicts.
    pub(super) async fn verdicts(&self, count: usize) -> Vec<Verdict> {
        wait_until(|| self.with_state(|state| state.done.len() >= count)).await;
        self.with_state(|state| state.done.iter().map(|(_, verdict)| verdict.clone()).collect())
    }

    /// Waits for the end of the connection. Returns its events and its failure.
    pub(super) async fn end(self) -> (Vec<&'static str>, Option<Failure>) {
        patient(self.serving).await.expect("must not panic");
        let state = self.state.lock().unwrap();
        (state.events.clone(), state.failure)
    }
}

pub(super) fn message(payload: &[u8]) -> Messages {
    Messages(vec![Framed::copy_from_payload(payload).unwrap()])
}

type Backend = Connection<TcpStream, Bytes>;

/// Accepts the next call. Returns its body and the handle to answer it.
async fn call(backend: &mut Backend) -> (Vec<u8>, SendResponse<Bytes>) {
    let (request, respond) = patient(backend.accept()).await.unwrap().unwrap();
    assert_eq!(request.uri().path(), Signal::Traces.grpc_path());
    let reading = async {
        let (mut body, mut stream) = (Vec::new(), request.into_body());
        while let Some(data) = stream.data().await {
            body.extend_from_slice(&data.unwrap());
        }
        body
    };
    let body = tokio::select! {
        body = patient(reading) => body,
        _ = async { while backend.accept().await.is_some() {} } => panic!("no further call is expected"),
    };
    (body, respond)
}

/// Drives the backend's side until the connection ends.
async fn drive(backend: &mut Backend) {
    while let Some(call) = backend.accept().await {
        // Calls after GOAWAY, and those that are reset, are ignored.
        drop(call);
    }
}

#[tokio::test]
async fn waiting_messages_are_sent_and_their_answers_are_reported() {
    let listener = listen().await;
    let served = Served::start(listener.local_addr().unwrap(), &[b"first", b"second"]);
    let mut backend = accept_h2(&listener).await;
    for (payload, status) in [(&b"first"[..], "0"), (b"second", "3")] {
        let (body, mut respond) = call(&mut backend).await;
        assert_eq!(body, [&[0, 0, 0, 0, u8::try_from(payload.len()).unwrap()], payload].concat());
        respond.send_response(trailers_only(status), true).unwrap();
    }
    tokio::select! {
        verdicts = served.verdicts(2) => {
            assert_eq!(verdicts[0], Verdict::Accepted(None));
            assert!(matches!(verdicts[1], Verdict::Refused { .. }), "{verdicts:?}");
        }
        () = drive(&mut backend) => panic!("the connection must stay"),
    }
    served.with_state(|state| {
        assert_eq!(state.begun, 2);
        assert_eq!((&state.done[0].0, &state.done[1].0), (&message(b"first"), &message(b"second")));
        assert_eq!(state.events, ["connected", "answered", "answered"]);
    });
    // A later message is sent once the connection is woken.
    served.with_state(|state| state.waiting.push_back(message(b"third")));
    served.wake(QUEUE);
    let (body, _respond) = call(&mut backend).await;
    assert_eq!(body[5..], *b"third");
    served.tasks.stop();
    assert_eq!(served.verdicts(3).await[2], Verdict::Stopped);
    assert_eq!(served.end().await.0.last(), Some(&"stopped"));
}

#[tokio::test]
async fn a_refused_connection_is_reported_and_takes_no_calls() {
    // The listener is closed at once, so that nothing listens on this port.
    let address = listen().await.local_addr().unwrap();
    let served = Served::start(address, &[b"waits"]);
    let state = Arc::clone(&served.state);
    assert_eq!(served.end().await, (vec!["not connected"], Some(Failure::ConnectRefused)));
    assert_eq!(state.lock().unwrap().waiting.len(), 1);
}

#[tokio::test]
async fn giving_up_ends_the_calls_and_the_connection() {
    let listener = listen().await;
    let served = Served::start(listener.local_addr().unwrap(), &[b"held"]);
    let mut backend = accept_h2(&listener).await;
    let (_, _respond) = call(&mut backend).await;
    // Without a reason to give up, a wake-up has no effect.
    served.wake(GIVE_UP);
    served.with_state(|state| state.is_given_up = true);
    served.wake(GIVE_UP);
    assert_eq!(served.verdicts(1).await, [Verdict::GivenUp]);
    assert_eq!(served.end().await, (vec!["connected", "gave up"], None));
}

#[tokio::test]
async fn a_connection_ends_after_its_last_call_when_no_more_calls_will_come() {
    let listener = listen().await;
    let served = Served::start(listener.local_addr().unwrap(), &[b"last"]);
    let mut backend = accept_h2(&listener).await;
    let (_, mut respond) = call(&mut backend).await;
    served.with_state(|state| state.is_finished = true);
    served.wake(QUEUE);
    respond.send_response(trailers_only("0"), true).unwrap();
    tokio::join!(drive(&mut backend), async {
        assert_eq!(served.verdicts(1).await, [Verdict::Accepted(None)]);
        assert_eq!(served.end().await, (vec!["connected", "answered", "left", "ended"], None));
    });
}

#[tokio::test]
async fn after_goaway_calls_in_flight_are_answered_and_no_others_begin() {
    let listener = listen().await;
    let served = Served::start(listener.local_addr().unwrap(), &[b"first"]);
    let mut backend = accept_h2(&listener).await;
    let (_, mut respond) = call(&mut backend).await;
    backend.graceful_shutdown();
    // GOAWAY names the stream of the first call as the last one, so that the backend accepts no further call.
    let left = async {
        wait_until(|| served.with_state(|state| state.events.contains(&"left"))).await;
        served.with_state(|state| state.waiting.push_back(message(b"late")));
        served.wake(QUEUE);
        respond.send_response(trailers_only("0"), true).unwrap();
        assert_eq!(served.verdicts(1).await, [Verdict::Accepted(None)]);
    };
    let ((), ()) = tokio::join!(left, drive(&mut backend));
    let state = Arc::clone(&served.state);
    assert_eq!(served.end().await, (vec!["connected", "left", "answered", "ended"], None));
    assert_eq!(state.lock().unwrap().waiting.len(), 1, "the late message must be left to another connection");
}

#[tokio::test]
async fn calls_fail_when_their_connection_is_reset() {
    let listener = listen().await;
    let served = Served::start(listener.local_addr().unwrap(), &[b"cut"]);
    let mut backend = accept_h2(&listener).await;
    let (_, respond) = call(&mut backend).await;
    drop((respond, backend));
    let expected = Verdict::Failed { failure: Failure::Reset, reached: true, scope: Scope::Connection };
    assert_eq!(served.verdicts(1).await, [expected]);
    assert_eq!(served.end().await, (vec!["connected", "ended with calls"], Some(Failure::Reset)));
}

#[tokio::test]
async fn a_stream_that_is_reset_by_either_side_fails_alone() {
    let listener = listen().await;
    let served = Served::start(listener.local_addr().unwrap(), &[b"one", b"two"]);
    let mut backend = accept_h2(&listener).await;
    let (_, mut respond) = call(&mut backend).await;
    respond.send_reset(h2::Reason::INTERNAL_ERROR);
    let (_, mut respond) = call(&mut backend).await;
    // More than its length says, so that this side resets the stream.
    let response = http::Response::builder().header("content-type", "application/grpc").header("content-length", 1);
    let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
    let verdicts = tokio::select! {
        verdicts = served.verdicts(2) => verdicts,
        () = drive(&mut backend) => panic!("must stay"),
    };
    let expected = [Failure::Reset, Failure::Protocol];
    assert_eq!(verdicts, expected.map(|failure| Verdict::Failed { failure, reached: true, scope: Scope::Stream }));
    served.tasks.stop();
}

#[tokio::test]
async fn a_call_ends_at_its_timeout_and_its_connection_stays() {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let state = Arc::new(Mutex::new(State { waiting: [message(b"slow")].into(), ..State::default() }));
    let keys = Delivery { timeout: Duration::from_millis(50), ..Delivery::default() };
    let peer = Peer::new(&Endpoint::new(address.to_string(), Some(address)), &keys, 1);
    let tasks = Tasks::new();
    let serving = tasks.spawn(serve(TestWork { peer, state: Arc::clone(&state) }, tasks.clone()));
    let served = Served { state, serving, tasks };
    let mut backend = accept_h2(&listener).await;
    let (_, _respond) = call(&mut backend).await;
    let expected = Verdict::Failed { failure: Failure::Timeout, reached: true, scope: Scope::Request };
    tokio::select! {
        verdicts = served.verdicts(1) => assert_eq!(verdicts, [expected]),
        () = drive(&mut backend) => panic!("the connection must stay"),
    }
    served.with_state(|state| assert_eq!(state.events, ["connected", "unanswered"]));
    served.tasks.stop();
}
