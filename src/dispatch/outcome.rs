//! The outcomes of parts, and whether a retry can help.

use std::{fmt, sync::Arc, time::Duration};

use tonic::Code;

use super::{Part, transport::Failure};

/// What became of one part.
#[derive(Clone, Debug, PartialEq)]
pub enum PartOutcome {
    /// Its backend has it, less `rejected`.
    Accepted {
        /// Records that the backend refused for good.
        rejected: u64,
        /// What the backend had to say.
        message: Option<String>,
    },
    /// Its backend refused it for good.
    Rejected {
        /// The backend's own code.
        code: Code,
        /// The backend's own words.
        message: String,
    },
    /// It is still owed.
    Retry {
        /// The backend that had it.
        owner: Arc<str>,
        /// The pause that the backend asked for, or that is left until it is tried again.
        after: Option<Duration>,
        /// Whether its bytes may have reached the backend, so that a repeat may arrive twice.
        reached: bool,
        /// What happened.
        cause: Cause,
        /// What is to be placed again.
        part: Part,
    },
}

/// Why a part is still owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nobody waits for it any longer.
    Abandoned,
    /// Its request's deadline passed while it waited.
    Deadline,
    /// The backend left the table and then failed.
    Departed,
    /// The table sends the backend's slots elsewhere.
    Ejected,
    /// There was no room in the backend's queue.
    Full,
    /// The backend itself answered with this retryable code: it is alive.
    Status(Code),
    /// The process is stopping.
    Stopped,
    /// Our transport failed.
    Transport(Failure),
    /// The backend has no address yet.
    Unresolved,
}

impl Cause {
    /// Whether nobody heard of the part, if nothing of it was sent: there was nobody to send it to.
    pub fn was_no_attempt(self) -> bool {
        match self {
            Self::Transport(failure) => {
                use Failure::{ConnectError, ConnectRefused, ConnectTimeout, Local, SpeaksTls, Tls, TurnedAway};
                matches!(
                    failure,
                    ConnectError | ConnectRefused | ConnectTimeout | Local(_) | SpeaksTls | Tls(_) | TurnedAway
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

/// Whether a backend that answered this retryable code may have taken the records all the same.
pub(super) fn may_have_taken(code: Code) -> bool {
    !matches!(code, Code::Unavailable | Code::ResourceExhausted)
}
