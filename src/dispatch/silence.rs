//! Keep-alive that no gRPC server minds: a PING only while a call is unanswered and nothing was read for a while.
//!
//! grpc-go resents pings that come more often than every 5 minutes, unless there are calls. Idle connections are left to TCP.

use std::time::Duration;

use tokio::time::Instant;

/// Silence with a call unanswered before a PING, and after it before the connection is given up.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// How long a peer has been silent although it owes an answer.
#[derive(Debug)]
pub(super) struct Silence {
    since: Instant,
    pinged_at: Option<Instant>,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    GiveUp,
    Ping,
    Wait,
}

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, pinged_at: None }
    }

    /// A call begins while no other is unanswered: nothing was owed before.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since = now;
    }

    /// Looks at it while calls are unanswered; `heard` says whether anything was read since the last look.
    pub(super) fn look(&mut self, now: Instant, heard: bool) -> Advice {
        if heard {
            *self = Self::new(now);
        }
        match self.pinged_at {
            Some(at) if now.saturating_duration_since(at) >= SILENCE => Advice::GiveUp,
            None if now.saturating_duration_since(self.since) >= SILENCE => {
                self.pinged_at = Some(now);
                Advice::Ping
            }
            Some(_) | None => Advice::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_pinged_and_then_given_up() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::new(start);
        assert_eq!(silence.look(at(9), false), Advice::Wait);
        assert_eq!(silence.look(at(10), false), Advice::Ping);
        assert_eq!(silence.look(at(12), false), Advice::Wait, "must not ping again");
        assert_eq!(silence.look(at(19), false), Advice::Wait);
        assert_eq!(silence.look(at(20), false), Advice::GiveUp);
    }

    #[test]
    fn whatever_is_read_ends_the_silence() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::new(start);
        assert_eq!(silence.look(at(10), true), Advice::Wait);
        assert_eq!(silence.look(at(20), false), Advice::Ping);
        assert_eq!(silence.look(at(21), true), Advice::Wait);
        assert_eq!(silence.look(at(30), false), Advice::Wait);
        silence.begin(at(60));
        assert_eq!(silence.look(at(69), false), Advice::Wait, "idle time is no silence");
    }
}
