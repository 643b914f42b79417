//! The transport without queues: the test is what a connection works for, and the backend at its other end.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use tokio::{net::TcpStream, task::JoinHandle, time::Instant};

use super::{AWAY, Contents, Event, Failure, Peer, QUEUE, Scope, Verdict, Wakers, Work, serve};
use crate::{
    endpoint::Endpoint,
    lifecycle::Tasks,
    otlp::{Framed, Metadata, Signal},
    settings::Delivery,
    testing::{accept_h2, listen, patient, trailers_only, wait_until},
};

/// Messages that go in one call.
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

/// What a connection works for here.
struct Errands {
    peer: Peer,
    book: Arc<Mutex<Book>>,
}

/// What is to be sent, and what was heard of it.
#[derive(Default)]
struct Book {
    waiting: VecDeque<Messages>,
    begun: usize,
    done: Vec<(Messages, Verdict)>,
    events: Vec<&'static str>,
    failure: Option<Failure>,
    wakers: Option<Arc<Wakers>>,
    is_given_up: bool,
    is_finished: bool,
}

impl Errands {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }
}

impl Work for Errands {
    type Contents = Messages;

    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn waits(&self) -> bool {
        !self.book().waiting.is_empty()
    }

    fn take(&mut self, _now: Instant) -> Option<Messages> {
        self.book().waiting.pop_front()
    }

    fn began(&mut self, _contents: &Messages, _now: Instant) {
        self.book().begun += 1;
    }

    fn done(&mut self, contents: Messages, started: Option<Instant>, verdict: Verdict, _now: Instant) {
        assert!(started.is_some(), "every call of these tests can begin");
        self.book().done.push((contents, verdict));
    }

    fn is_given_up(&mut self) -> bool {
        self.book().is_given_up
    }

    fn is_finished(&self) -> bool {
        self.book().is_finished
    }

    fn note(&mut self, event: Event) {
        let mut book = self.book();
        let name = match event {
            Event::Connected(wakers) => {
                book.wakers = Some(wakers);
                "connected"
            }
            Event::NotConnected(failure) => {
                book.failure = Some(failure);
                "not connected"
            }
            Event::Answered => "answered",
            Event::Unanswered(_) => "unanswered",
            Event::Left => "left",
            Event::InDoubt => "in doubt",
            Event::Ended { failure, lost } => {
                book.failure = failure;
                if lost { "ended with calls" } else { "ended" }
            }
            Event::GaveUp => "gave up",
            Event::Stopped => "stopped",
        };
        book.events.push(name);
    }
}

/// A connection that is being served.
struct Served {
    book: Arc<Mutex<Book>>,
    serving: JoinHandle<()>,
    tasks: Tasks,
}

impl Served {
    /// Serves a connection to `address`; `waiting` waits to be sent, one message a call.
    fn start(address: SocketAddr, waiting: &[&[u8]]) -> Self {
        let waiting = waiting.iter().map(|payload| message(payload)).collect();
        let book = Arc::new(Mutex::new(Book { waiting, ..Book::default() }));
        let endpoint = Endpoint::new(address.to_string(), Some(address));
        let peer = Peer::new(&endpoint, &Delivery::default(), 4);
        let tasks = Tasks::new();
        let serving = tasks.spawn(serve(Errands { peer, book: Arc::clone(&book) }, tasks.clone()));
        Self { book, serving, tasks }
    }

    fn look<T>(&self, look: impl FnOnce(&mut Book) -> T) -> T {
        look(&mut self.book.lock().unwrap())
    }

    fn wake(&self, bit: u64) {
        let wakers = self.look(|book| book.wakers.clone()).expect("must be connected");
        wakers.wake(bit);
    }

    /// Waits until so many calls are over. Returns what became of them.
    async fn verdicts(&self, count: usize) -> Vec<Verdict> {
        wait_until(|| self.look(|book| book.done.len() >= count)).await;
        self.look(|book| book.done.iter().map(|(_, verdict)| verdict.clone()).collect())
    }

    /// Waits for the connection's end. Returns what was seen of it.
    async fn end(self) -> (Vec<&'static str>, Option<Failure>) {
        patient(self.serving).await.expect("must not panic");
        let book = self.book.lock().unwrap();
        (book.events.clone(), book.failure)
    }
}

fn message(payload: &[u8]) -> Messages {
    Messages(vec![Framed::copy_from_payload(payload).unwrap()])
}

type Backend = Connection<TcpStream, Bytes>;

/// The next call: its body, and where its answer goes.
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
        // What comes after GOAWAY, or is reset, is looked at by nobody.
        drop(call);
    }
}

#[tokio::test]
async fn calls_are_made_of_what_waits_and_their_answers_come_back() {
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
        () = drive(&mut backend) => panic!("must stay"),
    }
    served.look(|book| {
        assert_eq!(book.begun, 2);
        assert_eq!((&book.done[0].0, &book.done[1].0), (&message(b"first"), &message(b"second")));
        assert_eq!(book.events, ["connected", "answered", "answered"]);
    });
    // What comes later is sent once the connection is woken for it.
    served.look(|book| book.waiting.push_back(message(b"third")));
    served.wake(QUEUE);
    let (body, _respond) = call(&mut backend).await;
    assert_eq!(body[5..], *b"third");
    served.tasks.stop();
    assert_eq!(served.verdicts(3).await[2], Verdict::Stopped);
    assert_eq!(served.end().await.0.last(), Some(&"stopped"));
}

#[tokio::test]
async fn a_backend_that_is_not_there_is_said_to_be_and_nothing_is_taken_for_it() {
    // The listener is gone by then, so that nobody has this port.
    let address = listen().await.local_addr().unwrap();
    let served = Served::start(address, &[b"waits"]);
    let book = Arc::clone(&served.book);
    assert_eq!(served.end().await, (vec!["not connected"], Some(Failure::ConnectRefused)));
    assert_eq!(book.lock().unwrap().waiting.len(), 1);
}

#[tokio::test]
async fn calls_that_are_given_up_end_with_their_connection() {
    let listener = listen().await;
    let served = Served::start(listener.local_addr().unwrap(), &[b"held"]);
    let mut backend = accept_h2(&listener).await;
    let (_, _respond) = call(&mut backend).await;
    // Whatever else wakes it, the call goes on.
    served.wake(AWAY);
    served.look(|book| book.is_given_up = true);
    served.wake(AWAY);
    assert_eq!(served.verdicts(1).await, [Verdict::GivenUp]);
    assert_eq!(served.end().await, (vec!["connected", "gave up"], None));
}

#[tokio::test]
async fn a_connection_ends_when_nothing_more_will_come() {
    let listener = listen().await;
    let served = Served::start(listener.local_addr().unwrap(), &[b"last"]);
    let mut backend = accept_h2(&listener).await;
    let (_, mut respond) = call(&mut backend).await;
    served.look(|book| book.is_finished = true);
    served.wake(QUEUE);
    respond.send_response(trailers_only("0"), true).unwrap();
    tokio::join!(drive(&mut backend), async {
        assert_eq!(served.verdicts(1).await, [Verdict::Accepted(None)]);
        assert_eq!(served.end().await, (vec!["connected", "answered", "left", "ended"], None));
    });
}

#[tokio::test]
async fn a_backend_that_goes_away_leaves_calls_unprocessed_and_answers_the_others() {
    let listener = listen().await;
    let served = Served::start(listener.local_addr().unwrap(), &[b"first"]);
    let mut backend = accept_h2(&listener).await;
    let (_, mut respond) = call(&mut backend).await;
    backend.graceful_shutdown();
    // The last stream that the backend names is the first call's, so that it takes no further one.
    let left = async {
        wait_until(|| served.look(|book| book.events.contains(&"left"))).await;
        served.look(|book| book.waiting.push_back(message(b"late")));
        served.wake(QUEUE);
        respond.send_response(trailers_only("0"), true).unwrap();
        assert_eq!(served.verdicts(1).await, [Verdict::Accepted(None)]);
    };
    let ((), ()) = tokio::join!(left, drive(&mut backend));
    let book = Arc::clone(&served.book);
    assert_eq!(served.end().await, (vec!["connected", "left", "answered", "ended"], None));
    assert_eq!(book.lock().unwrap().waiting.len(), 1, "what came late is for another connection");
}

#[tokio::test]
async fn a_connection_that_is_cut_takes_its_calls_with_it() {
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
async fn a_call_that_has_had_its_time_is_over_and_the_connection_stays() {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let book = Arc::new(Mutex::new(Book { waiting: [message(b"slow")].into(), ..Book::default() }));
    let keys = Delivery { timeout: Duration::from_millis(50), ..Delivery::default() };
    let peer = Peer::new(&Endpoint::new(address.to_string(), Some(address)), &keys, 1);
    let tasks = Tasks::new();
    let serving = tasks.spawn(serve(Errands { peer, book: Arc::clone(&book) }, tasks.clone()));
    let served = Served { book, serving, tasks };
    let mut backend = accept_h2(&listener).await;
    let (_, _respond) = call(&mut backend).await;
    let expected = Verdict::Failed { failure: Failure::Timeout, reached: true, scope: Scope::Request };
    tokio::select! {
        verdicts = served.verdicts(1) => assert_eq!(verdicts, [expected]),
        () = drive(&mut backend) => panic!("must stay"),
    }
    served.look(|book| assert_eq!(book.events, ["connected", "unanswered"]));
    served.tasks.stop();
}
