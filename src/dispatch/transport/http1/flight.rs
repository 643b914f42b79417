//! A call in flight: its deadlines, and the probe of its backend.
//!
//! A call ends at its clients' deadline, which may come before a slow backend answers. One such call of each backend is kept
//! open until the whole timeout of an attempt has passed, to find out whether the backend answers calls at all. Its records
//! are handed back at the clients' deadline, as those of other calls are. All other calls end there, with their connection:
//! HTTP/1.1 cannot end one without the other.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{reply::Unread, silence::Silence, socket::Seen, target::Target};
use crate::dispatch::transport::{Contents, clock::SECOND_LOOK};

/// A call that waits for its answer.
pub(super) struct Flight<C: Contents> {
    /// `None` once they were given back, because the clients have left.
    contents: Option<C>,
    /// What a call without clients keeps: the memory of its body, and its place.
    orphan: Option<(C::Held, OwnedSemaphorePermit)>,
    pub(super) started: Instant,
    deadline: Instant,
    /// The time when the timeout of the attempt has passed.
    until: Instant,
    /// Whether its deadline had passed at the last check. The next check ends the call.
    is_overdue: bool,
    silence: Silence,
    probe: Option<Probe>,
}

/// A probe, which asks on a new connection whether the backend is alive.
struct Probe {
    started_at: Instant,
    is_alive: Pin<Box<dyn Future<Output = bool> + Send>>,
}

/// How a call ended.
#[derive(Debug)]
pub(super) enum Landing {
    /// Calls were given up.
    GivenUp,
    /// The answer was read, or the connection failed.
    Read(Result<(), Unread>),
    /// The backend answers nothing.
    Silent,
    /// The process is stopping.
    Stopped,
    /// A deadline has passed: that of the clients, or that of the attempt.
    TimedOut,
}

/// What a check of the deadlines found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing yet.
    Nothing,
    /// The deadline has passed.
    Deadline,
}

impl<C: Contents> Flight<C> {
    /// Begins with these contents. `timeout` is that of an attempt.
    pub(super) fn new(contents: C, now: Instant, timeout: Duration) -> Self {
        let until = now + timeout;
        let deadline = contents.deadline().map_or(until, |latest| latest.min(until));
        Self {
            contents: Some(contents),
            orphan: None,
            started: now,
            deadline,
            until,
            is_overdue: false,
            silence: Silence::begin(now),
            probe: None,
        }
    }

    /// The time when the call ends without an answer.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the timeout of the attempt has passed.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until <= now
    }

    /// The time of the next check.
    pub(super) fn check_at(&self, seen: &Seen) -> Instant {
        if self.is_overdue {
            // Answers that arrived while this process was stalled are read before that.
            return Instant::now() + SECOND_LOOK;
        }
        match self.probe {
            Some(_) => self.deadline,
            None => self.deadline.min(self.silence.probe_at(seen.moved_at())),
        }
    }

    /// Checks the deadline and the silence of the backend. Begins a probe if one is due.
    pub(super) fn check(&mut self, now: Instant, seen: &Seen, target: &Target) -> Due {
        if self.deadline <= now {
            let is_second_look = std::mem::replace(&mut self.is_overdue, true);
            return if is_second_look { Due::Deadline } else { Due::Nothing };
        }
        if self.probe.is_none() && self.silence.probe_at(seen.moved_at()) <= now {
            let probes = target.probes.clone();
            let is_alive = Box::pin(async move { probes.is_alive().await });
            self.probe = Some(Probe { started_at: now, is_alive });
        }
        Due::Nothing
    }

    /// Waits for the end of the probe, if there is one. Returns whether the backend is alive. It is also alive if anything was
    /// read on this connection since the probe began.
    ///
    /// Cancel safety: the probe goes on with the next call.
    pub(super) async fn probed(&mut self, seen: &Seen) -> bool {
        let Some(probe) = &mut self.probe else { return std::future::pending().await };
        let is_alive = probe.is_alive.as_mut().await || seen.read_at().is_some_and(|at| at >= probe.started_at);
        self.probe = None;
        self.silence.probed(Instant::now());
        is_alive
    }

    /// Keeps the call open after its clients have left, if the backend has no such call yet. Returns the contents to give back,
    /// or `None` if the call has to end.
    pub(super) fn keep_open(&mut self, now: Instant, target: &Target) -> Option<C> {
        if self.is_over(now) {
            return None;
        }
        let place = target.take_orphans_place()?;
        let contents = self.contents.take()?;
        self.orphan = Some((contents.hold(), place));
        (self.deadline, self.is_overdue) = (self.until, false);
        Some(contents)
    }

    /// The contents, unless they were given back.
    pub(super) fn contents(&self) -> Option<&C> {
        self.contents.as_ref()
    }

    /// Returns the contents, unless they were given back.
    pub(super) fn into_contents(self) -> Option<C> {
        self.contents
    }
}

#[cfg(test)]
mod tests;
