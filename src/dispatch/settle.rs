//! Tells each part of a call what became of it: attributes partial successes, takes refused calls apart.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::Code;

use super::{
    Cause, Failure,
    backend::{Backend, UNMERGED_FOR},
    outcome::{Partial, Scope, Verdict, may_have_taken},
    piece::{Fate, Queued},
};

/// Times that a part may be left unprocessed by its backend (GOAWAY, `REFUSED_STREAM`) and go out again at once.
const MAX_UNPROCESSED: u8 = 3;

impl Backend {
    /// Settles the parts of a call that is over.
    pub(super) fn settle(self: &Arc<Self>, parts: Vec<Queued>, verdict: Verdict, now: Instant) {
        self.metrics.call(&verdict);
        match verdict {
            Verdict::Accepted(partial) => self.accepted(parts, partial, now),
            Verdict::Busy { code, after } => {
                let reached = may_have_taken(code);
                self.hand_back(parts, after, reached, Cause::Status(code));
            }
            Verdict::Failed { failure, reached, scope } => {
                let failure = self.seen_through(failure);
                if scope == Scope::Stream {
                    self.failed(failure);
                }
                self.hand_back(parts, None, reached, Cause::Transport(failure));
            }
            Verdict::GivenUp(cause) => self.hand_back(parts, None, true, cause),
            Verdict::Refused { .. } if parts.len() > 1 => self.take_apart(parts, now),
            Verdict::Refused { code, message } => {
                self.tell_refusal(code);
                for part in parts {
                    if part.apart {
                        part.inbox().connection.keep_unmerged(now, UNMERGED_FOR);
                    }
                    self.metrics.records(part.signal, 0, u64::from(part.records));
                    part.complete(Fate::Rejected { code, message: message.clone() });
                }
            }
            Verdict::Stopped => self.hand_back(parts, None, true, Cause::Stopped),
            Verdict::Unprocessed { refused } => self.unprocessed(parts, refused, now),
        }
    }

    /// Says that a backend refuses data for good, which is lost: a proxy that is no OTLP receiver does so, too. Its words go to
    /// the client and not to the log, since they may hold anything.
    #[cold]
    fn tell_refusal(&self, code: Code) {
        if let Some(unlogged) = self.shared.metrics.refusals.admit() {
            let pool = &*self.shared.metrics.pool;
            tracing::warn!(
                pool,
                backend = %self.identity,
                ?code,
                unlogged,
                "the backend refuses records for good: they are lost, and clients are told why"
            );
        }
    }

    fn accepted(&self, parts: Vec<Queued>, partial: Option<Partial>, now: Instant) {
        let merged = parts.len() > 1;
        if let Some(Partial { rejected, .. }) = &partial
            && merged
            && *rejected > 0
        {
            // Whose they are can't be told; the next counts will be exact.
            self.shared.metrics.unattributed.increment(*rejected);
            self.keep_unmerged(now);
        }
        for part in parts {
            let (rejected, message) = match &partial {
                Some(partial) if merged => (0, Some(partial.message.clone())),
                Some(partial) => (partial.rejected.min(u64::from(part.records)), Some(partial.message.clone())),
                None => (0, None),
            };
            self.metrics.records(part.signal, u64::from(part.records) - rejected, rejected);
            part.complete(Fate::Accepted { rejected, message });
        }
    }

    /// Sends each part of a refused call again, by itself, so that one client's bad data fails only that client.
    fn take_apart(self: &Arc<Self>, mut parts: Vec<Queued>, now: Instant) {
        self.shared.metrics.taken_apart.increment(1);
        for part in &mut parts {
            part.apart = true;
        }
        self.push_back_in_front(parts, now);
    }

    /// Sends parts again that the backend never looked at. A backend that has `refused` one again and again cannot be reached.
    fn unprocessed(self: &Arc<Self>, parts: Vec<Queued>, refused: bool, now: Instant) {
        let (again, spent): (Vec<_>, Vec<_>) = parts
            .into_iter()
            .map(|mut part| {
                part.unprocessed = part.unprocessed.saturating_add(1);
                part
            })
            .partition(|part| part.unprocessed <= MAX_UNPROCESSED);
        let failure = if refused { Failure::RefusedStream } else { Failure::Reset };
        if refused && !spent.is_empty() {
            self.failed(failure);
        }
        self.hand_back(spent, None, false, Cause::Transport(failure));
        if !again.is_empty() {
            self.push_back_in_front(again, now);
        }
    }

    /// Gives parts back that are still owed.
    fn hand_back(&self, parts: Vec<Queued>, after: Option<Duration>, reached: bool, cause: Cause) {
        for part in parts {
            part.complete(Fate::Owed { owner: Arc::clone(&self.identity), after, reached, cause });
        }
    }
}
