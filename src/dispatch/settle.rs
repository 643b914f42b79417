//! Handles the result of a call: reports the outcome of each part, attributes partial successes, and takes refused calls apart.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::Code;

use super::{
    Cause, Failure,
    backend::Backend,
    outcome::may_have_taken,
    queued::{Fate, Queued},
    transport::{Partial, Scope, Verdict},
};

/// How long parts are sent unmerged after a `partial_success` that could not be attributed to one of them, and how long those
/// of one client connection are after its data was refused (design 3, Dispatch).
const UNMERGED_FOR: Duration = Duration::from_secs(60);

/// Number of times that a part is sent again at once after its backend left it unprocessed (GOAWAY, `REFUSED_STREAM`).
const MAX_UNPROCESSED: u8 = 3;

/// Settles the parts of a call to `backend` that has ended. `given_up` is the reason for [`Verdict::GivenUp`].
pub(super) fn settle(
    backend: &Arc<Backend>,
    parts: Vec<Queued>,
    verdict: Verdict,
    given_up: Option<Cause>,
    now: Instant,
) {
    backend.metrics.call(&verdict);
    match verdict {
        Verdict::Accepted(partial) => accepted(backend, parts, partial, now),
        Verdict::Busy { code, after } => {
            let reached = may_have_taken(code);
            hand_back(backend, parts, after, reached, Cause::Status(code));
        }
        Verdict::Failed { failure, reached, scope } => {
            let failure = backend.health.seen_through(failure);
            if scope == Scope::Stream && !(failure == Failure::Reset && are_suspect(&parts)) {
                backend.failed(failure);
            }
            hand_back(backend, parts, None, reached, Cause::Transport(failure));
        }
        Verdict::GivenUp => hand_back(backend, parts, None, true, given_up.unwrap_or(Cause::Ejected)),
        Verdict::Refused { .. } if parts.len() > 1 => take_apart(backend, parts, now),
        Verdict::Refused { code, message } => {
            log_refusal(backend, code);
            for part in parts {
                if part.apart {
                    part.inbox().connection.keep_unmerged(now, UNMERGED_FOR);
                }
                backend.metrics.records(part.signal, 0, u64::from(part.records));
                part.complete(Fate::Rejected { code, message: message.clone() });
            }
        }
        Verdict::Stopped => hand_back(backend, parts, None, true, Cause::Stopped),
        Verdict::Unprocessed { refused } => unprocessed(backend, parts, refused, now),
    }
}

/// Whether all parts of a call have been reset by another backend. A further reset is then no failure of this one: else one request
/// that no backend can bear would eject one after the other.
pub(super) fn are_suspect(parts: &[Queued]) -> bool {
    parts.iter().all(|part| part.reset_elsewhere)
}

/// Logs that a backend refuses data for good, so that the data is lost. A proxy that is not an OTLP receiver does so too. The
/// backend's message goes to the client but not to the log, since it may contain anything.
#[cold]
fn log_refusal(backend: &Arc<Backend>, code: Code) {
    if let Some(unlogged) = backend.shared.metrics.refusals.admit() {
        let pool = &*backend.shared.metrics.pool;
        tracing::warn!(
            pool,
            backend = %backend.peer.identity,
            ?code,
            unlogged,
            "the backend refuses records for good: they are lost, and clients are told why"
        );
    }
}

fn accepted(backend: &Arc<Backend>, parts: Vec<Queued>, partial: Option<Partial>, now: Instant) {
    let merged = parts.len() > 1;
    if let Some(Partial { rejected, .. }) = &partial
        && merged
        && *rejected > 0
    {
        // It is unknown which parts the rejected records belong to. Parts are sent unmerged for a while, so that the next counts
        // are exact.
        backend.shared.metrics.unattributed.increment(*rejected);
        backend.lock().queue.keep_unmerged(now + UNMERGED_FOR);
    }
    for part in parts {
        let (rejected, message) = match &partial {
            Some(partial) if merged => (0, Some(partial.message.clone())),
            Some(partial) => (partial.rejected.min(u64::from(part.records)), Some(partial.message.clone())),
            None => (0, None),
        };
        backend.metrics.records(part.signal, u64::from(part.records) - rejected, rejected);
        part.complete(Fate::Accepted { rejected, message });
    }
}

/// Sends each part of a refused call again in a call of its own, so that invalid data of one client fails only that client.
fn take_apart(backend: &Arc<Backend>, mut parts: Vec<Queued>, now: Instant) {
    backend.shared.metrics.taken_apart.increment(1);
    for part in &mut parts {
        part.apart = true;
    }
    backend.push_back_in_front(parts, now);
}

/// Sends parts again that the backend did not process. If it has repeatedly `refused` a part, this counts as a failure.
fn unprocessed(backend: &Arc<Backend>, parts: Vec<Queued>, refused: bool, now: Instant) {
    let (again, spent): (Vec<_>, Vec<_>) = parts
        .into_iter()
        .map(|mut part| {
            part.unprocessed = part.unprocessed.saturating_add(1);
            part
        })
        .partition(|part| part.unprocessed <= MAX_UNPROCESSED);
    let failure = if refused { Failure::RefusedStream } else { Failure::Reset };
    if refused && !spent.is_empty() {
        backend.failed(failure);
    }
    hand_back(backend, spent, None, false, Cause::Transport(failure));
    if !again.is_empty() {
        backend.push_back_in_front(again, now);
    }
}

/// Hands back parts that were not delivered.
fn hand_back(backend: &Arc<Backend>, parts: Vec<Queued>, after: Option<Duration>, reached: bool, cause: Cause) {
    for part in parts {
        part.complete(Fate::Owed { owner: Arc::clone(&backend.peer.identity), after, reached, cause });
    }
}
