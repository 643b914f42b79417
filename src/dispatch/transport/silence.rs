//! Judges the silence of one connection: when to send a PING, when to ask on a fresh connection, when the peer is given up.
//!
//! What a client is willing to wait says nothing about a backend, so silence is measured on the connection and across calls.
//! An answer is owed from the first unanswered call on. A call that was reset before its answer came, because its client
//! waited no longer, keeps the connection under suspicion until something is read after the reset.
//!
//! A PING must not offend the server. grpc-go counts PINGs that come more often than every 5 minutes, sends GOAWAY after more
//! than two of them, and starts the count anew only when it writes HEADERS or DATA. So a connection sends at most
//! [`MAX_PINGS`] between two answers; a later doubt is settled on a fresh connection.

use std::time::Duration;

use tokio::time::Instant;

/// Time without a byte, while an answer is owed, before a PING is sent; and from the PING until the peer is given up (design
/// 3, Silence).
pub(super) const SILENCE: Duration = Duration::from_secs(1);

/// PINGs on one connection since the peer last answered a call.
const MAX_PINGS: u8 = 2;

/// How long a peer has been silent although it owes an answer.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Since when it has owed an answer without a pause; `None` while it owes none.
    owed_since: Option<Instant>,
    /// The last reset of an unanswered call, until something is read after it.
    reset_at: Option<Instant>,
    /// When a fresh connection last showed that the peer is alive.
    vouched_at: Option<Instant>,
    ping: Option<Outstanding>,
    /// PINGs since the peer last answered a call.
    pings: u8,
}

/// A PING without an answer yet.
#[derive(Clone, Copy, Debug)]
struct Outstanding {
    /// When it was sent, or when the bytes in front of it last moved.
    since: Instant,
    /// Bytes that the connection had written by then; `None` once the PING itself was written.
    written: Option<u64>,
}

/// What is known of the connection's traffic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// When something was read last.
    pub(super) read_at: Option<Instant>,
    /// When the PING that was marked last left for the kernel; `None` while bytes in front of it wait.
    pub(super) ping_written_at: Option<Instant>,
    /// Bytes that were written in all.
    pub(super) written: u64,
}

/// What to do about the silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Ask the peer on a fresh connection.
    Ask,
    /// The peer does not answer.
    GiveUp,
    /// Send a PING.
    Ping,
    /// Nothing is owed.
    Rest,
    /// Look again at that instant.
    Wait(Instant),
}

impl Silence {
    /// A call begins; `is_waiting` says whether others wait for their answers.
    pub(super) fn begin(&mut self, now: Instant, is_waiting: bool) {
        match self.owed_since {
            Some(_) if is_waiting || self.reset_at.is_some() => {}
            // Until now nothing was owed, whenever that was looked at last.
            _ => self.owed_since = Some(now),
        }
    }

    /// The peer answered a call: it forgives the PINGs so far.
    pub(super) fn answered(&mut self) {
        self.pings = 0;
    }

    /// An unanswered call was reset.
    pub(super) fn reset(&mut self, now: Instant) {
        self.reset_at = Some(now);
    }

    /// A fresh connection showed that the peer is alive.
    pub(super) fn vouch(&mut self, now: Instant) {
        self.vouched_at = Some(now);
        self.reset_at = None;
    }

    /// Judges the silence; `is_waiting` says whether any call waits for its answer.
    pub(super) fn look(&mut self, now: Instant, traffic: Traffic, is_waiting: bool) -> Advice {
        let was_read_since = |at: Instant| traffic.read_at.is_some_and(|read_at| read_at >= at);
        self.reset_at = self.reset_at.filter(|at| !was_read_since(*at));
        let owed_since = match self.owed_since {
            Some(since) if is_waiting || self.reset_at.is_some() => since,
            _ => {
                *self = Self { pings: self.pings, ..Self::default() };
                return Advice::Rest;
            }
        };
        if let Some(ping) = self.ping.filter(|ping| !was_read_since(ping.since)) {
            return self.look_at_ping(ping, now, traffic);
        }
        self.ping = None;
        let heard_at = [traffic.read_at, self.vouched_at].into_iter().flatten().fold(owed_since, Instant::max);
        if now < heard_at + SILENCE {
            return Advice::Wait(heard_at + SILENCE);
        }
        if self.pings >= MAX_PINGS {
            return Advice::Ask;
        }
        self.pings += 1;
        self.ping = Some(Outstanding { since: now, written: Some(traffic.written) });
        Advice::Ping
    }

    /// A PING behind bytes that still move is not unanswered: the way is slow and not silent.
    fn look_at_ping(&mut self, ping: Outstanding, now: Instant, traffic: Traffic) -> Advice {
        let ping = match (ping.written, traffic.ping_written_at) {
            (Some(_), Some(at)) => Outstanding { since: at.max(ping.since), written: None },
            (Some(before), None) if traffic.written > before => {
                Outstanding { since: now, written: Some(traffic.written) }
            }
            _ => ping,
        };
        self.ping = Some(ping);
        let until = ping.since + SILENCE;
        if now >= until { Advice::GiveUp } else { Advice::Wait(until) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock in milliseconds and a connection that writes at once.
    struct Peer {
        start: Instant,
        silence: Silence,
        traffic: Traffic,
    }

    impl Peer {
        fn new() -> Self {
            let traffic = Traffic { read_at: None, ping_written_at: None, written: 0 };
            Self { start: Instant::now(), silence: Silence::default(), traffic }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        /// A call begins while no other waits.
        fn begin(&mut self, millis: u64) {
            self.silence.begin(self.at(millis), false);
        }

        fn read(&mut self, millis: u64) {
            self.traffic.read_at = Some(self.at(millis));
        }

        /// Looks while a call waits.
        fn look(&mut self, millis: u64) -> Advice {
            self.look_with(millis, true)
        }

        fn look_with(&mut self, millis: u64, is_waiting: bool) -> Advice {
            let now = self.at(millis);
            let advice = self.silence.look(now, self.traffic, is_waiting);
            if advice == Advice::Ping {
                self.traffic.ping_written_at = Some(now);
            }
            advice
        }

        fn wait(&self, millis: u64) -> Advice {
            Advice::Wait(self.at(millis))
        }
    }

    #[test]
    fn a_silent_peer_gets_a_ping_after_one_second_and_is_given_up_one_second_later() {
        let mut peer = Peer::new();
        peer.begin(500);
        assert_eq!(peer.look(1_499), peer.wait(1_500));
        assert_eq!(peer.look(1_500), Advice::Ping);
        assert_eq!(peer.look(2_499), peer.wait(2_500), "must not send another PING");
        assert_eq!(peer.look(2_500), Advice::GiveUp);
    }

    #[test]
    fn every_byte_that_is_read_ends_the_silence() {
        let mut peer = Peer::new();
        peer.begin(0);
        peer.read(900);
        assert_eq!(peer.look(1_000), peer.wait(1_900));
        assert_eq!(peer.look(1_900), Advice::Ping);
        peer.read(2_000);
        assert_eq!(peer.look(2_900), peer.wait(3_000), "the PING was answered");
    }

    #[test]
    fn idle_time_is_no_silence() {
        let mut peer = Peer::new();
        peer.begin(0);
        peer.read(10);
        assert_eq!(peer.look_with(1_000, false), Advice::Rest);
        peer.begin(60_000);
        assert_eq!(peer.look(60_500), peer.wait(61_000));
    }

    #[test]
    fn idle_time_that_nobody_looked_at_is_no_silence_either() {
        let mut peer = Peer::new();
        peer.begin(0);
        peer.read(10);
        peer.begin(990);
        assert_eq!(peer.look(1_000), peer.wait(1_990));
        peer.silence.begin(peer.at(1_500), true);
        assert_eq!(peer.look(1_990), Advice::Ping, "the first of two that wait counts");
    }

    #[test]
    fn calls_that_were_reset_stay_owed_until_something_is_read() {
        let mut peer = Peer::new();
        peer.begin(0);
        for at in [400, 800, 1_200] {
            peer.silence.reset(peer.at(at));
            peer.begin(at + 1);
        }
        assert_eq!(peer.look_with(1_250, false), Advice::Ping, "measured from the first call on");
        assert_eq!(peer.look_with(2_250, false), Advice::GiveUp);

        let mut peer = Peer::new();
        peer.begin(0);
        peer.silence.reset(peer.at(400));
        peer.read(500);
        assert_eq!(peer.look_with(1_000, false), Advice::Rest, "a byte after the reset settles it");
    }

    #[test]
    fn a_third_doubt_without_an_answer_is_settled_on_a_fresh_connection() {
        let mut peer = Peer::new();
        peer.begin(0);
        for at in [1_000, 2_000] {
            assert_eq!(peer.look(at), Advice::Ping);
            peer.read(at);
        }
        assert_eq!(peer.look(3_000), Advice::Ask);
        peer.silence.vouch(peer.at(3_100));
        assert_eq!(peer.look(3_200), peer.wait(4_100));
        assert_eq!(peer.look(4_100), Advice::Ask);
        peer.silence.answered();
        assert_eq!(peer.look(4_200), Advice::Ping, "an answer allows PINGs again");
    }

    #[test]
    fn idle_time_does_not_allow_pings_again() {
        let mut peer = Peer::new();
        for at in [0, 10_000] {
            peer.begin(at);
            assert_eq!(peer.look(at + 1_000), Advice::Ping);
            peer.read(at + 1_000);
            assert_eq!(peer.look_with(at + 1_500, false), Advice::Rest);
        }
        peer.begin(20_000);
        assert_eq!(peer.look(21_000), Advice::Ask);
    }

    #[test]
    fn a_ping_behind_bytes_that_still_move_is_waited_for() {
        let mut peer = Peer::new();
        peer.begin(0);
        assert_eq!(peer.look(1_000), Advice::Ping);
        peer.traffic.ping_written_at = None;
        peer.traffic.written = 1;
        assert_eq!(peer.look(2_000), peer.wait(3_000), "the way is slow");
        peer.traffic.ping_written_at = Some(peer.at(2_500));
        assert_eq!(peer.look(3_000), peer.wait(3_500));
        assert_eq!(peer.look(3_500), Advice::GiveUp);

        let mut peer = Peer::new();
        peer.begin(0);
        assert_eq!(peer.look(1_000), Advice::Ping);
        peer.traffic.ping_written_at = None;
        assert_eq!(peer.look(2_000), Advice::GiveUp, "nothing moves");
    }
}
