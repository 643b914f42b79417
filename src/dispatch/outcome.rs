//! The outcomes of parts, and whether a retry can help.

use std::{fmt, sync::Arc, time::Duration};

use tonic::Code;

use super::{Part, transport::Failure};

/// The outcome of one part.
#[derive(Clone, Debug, PartialEq)]
pub enum PartOutcome {
    /// Its backend has accepted the part, except for `rejected` records.
    Accepted {
        /// The number of records that the backend refused for good.
        rejected: u64,
        /// The message of the backend's `partial_success`.
        message: Option<String>,
    },
    /// Its backend has refused the part for good.
    Rejected {
        /// The backend's status code.
        code: Code,
        /// The backend's status message.
        message: String,
    },
    /// The part was not delivered, and can be tried again.
    Retry {
        /// The backend that it was meant for.
        owner: Arc<str>,
        /// The shortest pause before the next attempt, if the backend asked for one or if a pause between connects is not over.
        after: Option<Duration>,
        /// Whether the backend may have received the part, so that a retry may deliver it twice.
        reached: bool,
        /// The reason why it was not delivered.
        cause: Cause,
        /// The part.
        part: Part,
    },
}

/// The reason why a part was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its request was abandoned.
    Abandoned,
    /// The deadline of its request passed while it waited.
    Deadline,
    /// The backend left the table and then failed.
    Departed,
    /// The table assigns the backend's slots to others.
    Ejected,
    /// There was no room in the backend's queue.
    Full,
    /// The backend answered with this retryable code, so it is alive.
    Status(Code),
    /// The process is stopping.
    Stopped,
    /// Our transport failed.
    Transport(Failure),
    /// The backend has no address yet.
    Unresolved,
}

impl Cause {
    /// Whether the attempt counts as none, provided that the part did not reach the backend: it could not be sent at all.
    pub fn was_no_attempt(self) -> bool {
        match self {
            Self::Transport(failure) => {
                use Failure::{
                    ConnectError, ConnectRefused, ConnectTimeout, Local, SpeaksHttp1, SpeaksHttp2, SpeaksTls, Tls,
                    TurnedAway,
                };
                let is_foreign = matches!(failure, SpeaksHttp1 | SpeaksHttp2 | SpeaksTls);
                is_foreign
                    || matches!(
                        failure,
                        ConnectError | ConnectRefused | ConnectTimeout | Local(_) | Tls(_) | TurnedAway
                    )
            }
            Self::Abandoned | Self::Deadline | Self::Departed | Self::Ejected | Self::Full | Self::Unresolved => true,
            Self::Status(_) | Self::Stopped => false,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abandoned => f.write_str("nobody waits for it any longer"),
            Self::Deadline => f.write_str("the deadline passed before it could be sent"),
            Self::Departed => f.write_str("left the pool and failed"),
            Self::Ejected => f.write_str("taken out of service"),
            Self::Full => f.write_str("its queue is full"),
            Self::Status(code) => write!(f, "answered {code:?}"),
            Self::Stopped => f.write_str("this proxy is stopping"),
            Self::Transport(failure) => failure.fmt(f),
            Self::Unresolved => f.write_str("no address is known yet"),
        }
    }
}

/// Whether a backend that answered with this retryable code may nevertheless have accepted the records.
pub(super) fn may_have_taken(code: Code) -> bool {
    !matches!(code, Code::Unavailable | Code::ResourceExhausted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{shortage::Shortage, tls::Reason};

    #[test]
    fn a_retry_was_no_attempt_if_there_was_nobody_to_send_it_to() {
        use Failure::*;
        let none = [
            Cause::Abandoned,
            Cause::Deadline,
            Cause::Departed,
            Cause::Ejected,
            Cause::Full,
            Cause::Unresolved,
            Cause::Transport(ConnectError),
            Cause::Transport(ConnectRefused),
            Cause::Transport(ConnectTimeout),
            Cause::Transport(Local(Shortage::Ports)),
            Cause::Transport(SpeaksHttp1),
            Cause::Transport(SpeaksHttp2),
            Cause::Transport(SpeaksTls),
            Cause::Transport(Tls(Reason::Expired)),
            Cause::Transport(TurnedAway),
        ];
        let some = [Cause::Status(Code::Unavailable), Cause::Stopped];
        let failed = [Gateway(503), Ping, Protocol, RefusedStream, Reset, ResetAtOnce, Timeout].map(Cause::Transport);
        assert!(none.into_iter().all(Cause::was_no_attempt));
        assert!(!some.into_iter().chain(failed).any(Cause::was_no_attempt));
    }

    #[test]
    fn only_a_backend_that_is_overloaded_has_certainly_not_taken_the_records() {
        assert!(![Code::Unavailable, Code::ResourceExhausted].into_iter().any(may_have_taken));
        let others = [Code::Cancelled, Code::DeadlineExceeded, Code::Aborted, Code::OutOfRange, Code::DataLoss];
        assert!(others.into_iter().all(may_have_taken));
    }
}
