//! Judges the silence of a peer on one connection: decides when to send a PING, when to probe the peer on a new connection, and
//! when to give it up.
//!
//! The time that a client is willing to wait says nothing about a backend. So silence is measured on the connection, across
//! calls. The peer owes an answer from the first unanswered call on. If a call is reset before its answer arrived, because its
//! client no longer waits, the peer still owes an answer until something is read after the reset.
//!
//! grpc-go limits PINGs: it counts those that arrive less than 5 minutes after the one before, sends GOAWAY after more than
//! two of them, and resets the count only when it writes HEADERS or DATA. So a connection sends at most [`MAX_PINGS`] between
//! two answers. After that, the peer is probed on a new connection.

use std::time::Duration;

use tokio::time::Instant;

/// Time without a byte from a peer that owes an answer until a PING is sent, and from the PING until the peer is given up
/// (design 3, Silence).
pub(super) const SILENCE: Duration = Duration::from_secs(1);

/// Maximum number of PINGs on one connection between two answers to calls.
const MAX_PINGS: u8 = 2;

/// How long a peer has been silent although it owes an answer.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// The time since which the peer has owed an answer; `None` if it owes none.
    owed_since: Option<Instant>,
    /// The time of the last reset of an unanswered call; `None` once something was read after it.
    reset_at: Option<Instant>,
    /// The time when a probe last showed that the peer is alive.
    probed_at: Option<Instant>,
    ping: Option<Outstanding>,
    /// The number of PINGs since the peer last answered a call.
    pings: u8,
}

/// A PING that is not answered yet.
#[derive(Clone, Copy, Debug)]
struct Outstanding {
    /// The time when the PING was written. While it waits behind other bytes: the time when some of them were last written.
    since: Instant,
    /// The number of bytes that the connection had written at that time; `None` once the PING itself was written.
    written: Option<u64>,
}

/// The traffic of the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// The time when something was read last.
    pub(super) read_at: Option<Instant>,
    /// The time when the last PING was written to the kernel; `None` while bytes in front of it wait.
    pub(super) ping_written_at: Option<Instant>,
    /// The number of bytes written in all.
    pub(super) written: u64,
}

/// What to do about the silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Probe the peer on a new connection.
    Probe,
    /// Give the peer up, because it does not answer.
    GiveUp,
    /// Send a PING.
    Ping,
    /// Do nothing: the peer owes no answer.
    Rest,
    /// Check again at this time.
    Wait(Instant),
}

impl Silence {
    /// Notes that a call begins. `is_waiting` says whether other calls wait for their answers.
    pub(super) fn begin(&mut self, now: Instant, is_waiting: bool) {
        match self.owed_since {
            Some(_) if is_waiting || self.reset_at.is_some() => {}
            // The peer owed nothing until now.
            _ => self.owed_since = Some(now),
        }
    }

    /// Notes that the peer has answered a call. This resets its count of PINGs.
    pub(super) fn answered(&mut self) {
        self.pings = 0;
    }

    /// Notes that an unanswered call was reset.
    pub(super) fn reset(&mut self, now: Instant) {
        self.reset_at = Some(now);
    }

    /// Notes that a probe showed that the peer is alive.
    pub(super) fn probed(&mut self, now: Instant) {
        self.probed_at = Some(now);
        self.reset_at = None;
    }

    /// Judges the silence. `is_waiting` says whether any call waits for its answer.
    pub(super) fn judge(&mut self, now: Instant, traffic: Traffic, is_waiting: bool) -> Advice {
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
            return self.judge_ping(ping, now, traffic);
        }
        self.ping = None;
        let heard_at = [traffic.read_at, self.probed_at].into_iter().flatten().fold(owed_since, Instant::max);
        if now < heard_at + SILENCE {
            return Advice::Wait(heard_at + SILENCE);
        }
        if self.pings >= MAX_PINGS {
            return Advice::Probe;
        }
        self.pings += 1;
        self.ping = Some(Outstanding { since: now, written: Some(traffic.written) });
        Advice::Ping
    }

    /// Judges an unanswered PING. While bytes in front of it are still being written, the connection is slow but not silent, so
    /// the PING does not count as unanswered.
    fn judge_ping(&mut self, ping: Outstanding, now: Instant, traffic: Traffic) -> Advice {
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

    /// A peer at a connection that writes at once, with times in milliseconds since its start.
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

        /// Begins a call while no other waits.
        fn begin(&mut self, millis: u64) {
            self.silence.begin(self.at(millis), false);
        }

        fn read(&mut self, millis: u64) {
            self.traffic.read_at = Some(self.at(millis));
        }

        /// Judges the silence while a call waits.
        fn judge(&mut self, millis: u64) -> Advice {
            self.judge_with(millis, true)
        }

        fn judge_with(&mut self, millis: u64, is_waiting: bool) -> Advice {
            let now = self.at(millis);
            let advice = self.silence.judge(now, self.traffic, is_waiting);
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
        assert_eq!(peer.judge(1_499), peer.wait(1_500));
        assert_eq!(peer.judge(1_500), Advice::Ping);
        assert_eq!(peer.judge(2_499), peer.wait(2_500), "must not send another PING");
        assert_eq!(peer.judge(2_500), Advice::GiveUp);
    }

    #[test]
    fn every_read_ends_the_silence() {
        let mut peer = Peer::new();
        peer.begin(0);
        peer.read(900);
        assert_eq!(peer.judge(1_000), peer.wait(1_900));
        assert_eq!(peer.judge(1_900), Advice::Ping);
        peer.read(2_000);
        assert_eq!(peer.judge(2_900), peer.wait(3_000), "the PING was answered");
    }

    #[test]
    fn idle_time_is_not_silence() {
        let mut peer = Peer::new();
        peer.begin(0);
        peer.read(10);
        assert_eq!(peer.judge_with(1_000, false), Advice::Rest);
        peer.begin(60_000);
        assert_eq!(peer.judge(60_500), peer.wait(61_000));
    }

    #[test]
    fn idle_time_between_two_checks_is_not_silence() {
        let mut peer = Peer::new();
        peer.begin(0);
        peer.read(10);
        peer.begin(990);
        assert_eq!(peer.judge(1_000), peer.wait(1_990));
        peer.silence.begin(peer.at(1_500), true);
        assert_eq!(peer.judge(1_990), Advice::Ping, "silence begins with the first of two waiting calls");
    }

    #[test]
    fn answers_to_reset_calls_are_owed_until_something_is_read() {
        let mut peer = Peer::new();
        peer.begin(0);
        for at in [400, 800, 1_200] {
            peer.silence.reset(peer.at(at));
            peer.begin(at + 1);
        }
        assert_eq!(peer.judge_with(1_250, false), Advice::Ping, "measured from the first call on");
        assert_eq!(peer.judge_with(2_250, false), Advice::GiveUp);

        let mut peer = Peer::new();
        peer.begin(0);
        peer.silence.reset(peer.at(400));
        peer.read(500);
        assert_eq!(peer.judge_with(1_000, false), Advice::Rest, "a byte after the reset settles it");
    }

    #[test]
    fn the_third_silence_without_an_answer_leads_to_a_probe() {
        let mut peer = Peer::new();
        peer.begin(0);
        for at in [1_000, 2_000] {
            assert_eq!(peer.judge(at), Advice::Ping);
            peer.read(at);
        }
        assert_eq!(peer.judge(3_000), Advice::Probe);
        peer.silence.probed(peer.at(3_100));
        assert_eq!(peer.judge(3_200), peer.wait(4_100));
        assert_eq!(peer.judge(4_100), Advice::Probe);
        peer.silence.answered();
        assert_eq!(peer.judge(4_200), Advice::Ping, "an answer allows PINGs again");
    }

    #[test]
    fn idle_time_does_not_allow_pings_again() {
        let mut peer = Peer::new();
        for at in [0, 10_000] {
            peer.begin(at);
            assert_eq!(peer.judge(at + 1_000), Advice::Ping);
            peer.read(at + 1_000);
            assert_eq!(peer.judge_with(at + 1_500, false), Advice::Rest);
        }
        peer.begin(20_000);
        assert_eq!(peer.judge(21_000), Advice::Probe);
    }

    #[test]
    fn a_ping_does_not_count_as_unanswered_while_bytes_before_it_are_written() {
        let mut peer = Peer::new();
        peer.begin(0);
        assert_eq!(peer.judge(1_000), Advice::Ping);
        peer.traffic.ping_written_at = None;
        peer.traffic.written = 1;
        assert_eq!(peer.judge(2_000), peer.wait(3_000), "the connection is slow");
        peer.traffic.ping_written_at = Some(peer.at(2_500));
        assert_eq!(peer.judge(3_000), peer.wait(3_500));
        assert_eq!(peer.judge(3_500), Advice::GiveUp);

        let mut peer = Peer::new();
        peer.begin(0);
        assert_eq!(peer.judge(1_000), Advice::Ping);
        peer.traffic.ping_written_at = None;
        assert_eq!(peer.judge(2_000), Advice::GiveUp, "nothing is being written");
    }
}
