//! Why the API server gave no set of backends, and how that is counted, logged and shown.

/// The longest message of the API server that is logged and shown, in characters.
const MAX_MESSAGE: usize = 300;

/// The reason why there is no good answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// It is not known where the API server is, or the credentials cannot be read.
    #[error("cannot read how to reach the API server: {0}")]
    Config(String),
    /// No connection, or it ended.
    #[error("no answer of the API server: {0}")]
    Connection(String),
    /// No answer in time.
    #[error("no answer of the API server in time")]
    Timeout,
    /// The credentials are refused (401), or they do not permit this (403).
    #[error("denied by the API server ({code}): {message}")]
    Denied {
        /// The HTTP status.
        code: u16,
        /// What the API server says.
        message: String,
    },
    /// The version from which to go on is too old (410).
    #[error("the API server does not know any more what has changed (410): {message}")]
    Expired {
        /// What the API server says.
        message: String,
    },
    /// Another error of the API server.
    #[error("error of the API server ({code}): {message}")]
    Status {
        /// The HTTP status.
        code: u16,
        /// What the API server says.
        message: String,
    },
    /// The answer is not what it should be.
    #[error("cannot read an answer of the API server: {0}")]
    Unreadable(String),
    /// The answer is longer than it may be.
    #[error("an answer of the API server has more than {0} bytes")]
    TooLarge(usize),
    /// The watch ends at once, again and again.
    #[error("the API server ends each watch at once")]
    ShortWatch,
    /// There is no endpoint that could be a backend.
    #[error("the Service has no endpoint that serves ({0})")]
    Empty(String),
}

impl Failure {
    /// Returns the failure that a status of the API server stands for.
    pub(super) fn of_status(code: u16, message: &str) -> Self {
        let message: String = message.chars().take(MAX_MESSAGE).collect();
        let message = if message.is_empty() { "no reason given".to_owned() } else { message };
        match code {
            401 | 403 => Self::Denied { code, message },
            410 => Self::Expired { message },
            code => Self::Status { code, message },
        }
    }

    /// Returns the value of the metric label `result`, one of [`super::super::metrics::API_RESULTS`].
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Empty(_) => "empty",
            Self::Denied { .. } => "denied",
            Self::Expired { .. } => "expired",
            Self::Timeout => "timeout",
            _ => "error",
        }
    }
}
