//! A part that waits for a call or is in one, and its possible outcomes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;
use tonic::Code;

use super::{Cause, Part, PartOutcome, join::Inbox};
use crate::{
    codec::Encoding,
    otlp::{Framed, Signal},
};

/// A part that waits for a call or is in one.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) message: Framed,
    /// The encoding that its request came in.
    pub(super) encoding: Option<Encoding>,
    /// Its request as it came, if the part is all of it.
    pub(super) original: Option<Bytes>,
    pub(super) records: u32,
    pub(super) signal: Signal,
    /// Whether the part needs a call of its own.
    pub(super) alone: bool,
    /// Whether the part was in a merged call that the backend refused for good.
    pub(super) apart: bool,
    /// See [`Part::reset_elsewhere`].
    pub(super) reset_elsewhere: bool,
    /// How many times the backend left it unprocessed.
    pub(super) unprocessed: u8,
    /// The time since when it waits.
    pub(super) since: Instant,
    /// The mailbox of its request.
    inbox: Arc<Inbox>,
    backend: u32,
    index: u32,
}

/// The outcome of one part. An owed part was not delivered and is handed back.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate {
    Accepted { rejected: u64, message: Option<String> },
    Owed { owner: Arc<str>, after: Option<Duration>, reached: bool, cause: Cause },
    Rejected { code: Code, message: String },
}

impl Queued {
    /// Creates the entry for a part.
    pub(super) fn from_part(part: Part, inbox: &Arc<Inbox>, since: Instant) -> Self {
        let Part { message, records, encoding, original, signal, backend, alone, reset_elsewhere, index } = part;
        let (inbox, apart, unprocessed) = (Arc::clone(inbox), false, 0);
        Self {
            message,
            encoding,
            original,
            records,
            signal,
            alone,
            apart,
            reset_elsewhere,
            unprocessed,
            since,
            inbox,
            backend,
            index,
        }
    }

    /// The mailbox of its request.
    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Notes that a call begins with the part.
    pub(super) fn begin(&self) {
        self.inbox.begin(self.index);
    }

    /// Its request as it came, if the part is all of it and `encoding`, in which it is to be sent, is the one it came in. A
    /// part that is tried again may get another encoding than before.
    pub(super) fn as_it_came(&self, encoding: Option<Encoding>) -> Option<&Bytes> {
        self.original.as_ref().filter(|_| encoding.is_some() && encoding == self.encoding)
    }

    /// The room that the part takes in a queue, in bytes.
    pub(super) fn cost(&self) -> usize {
        self.message.framed_len()
    }

    /// Delivers the outcome to the part's request.
    pub(super) fn complete(self, fate: Fate) {
        let Self {
            message, encoding, original, records, signal, alone, reset_elsewhere, inbox, backend, index, ..
        } = self;
        let outcome = match fate {
            Fate::Accepted { rejected, message } => PartOutcome::Accepted { rejected, message },
            Fate::Rejected { code, message } => PartOutcome::Rejected { code, message },
            Fate::Owed { owner, after, reached, cause } => {
                let part =
                    Part { message, records, encoding, original, signal, backend, alone, reset_elsewhere, index };
                PartOutcome::Retry { owner, after, reached, cause, part }
            }
        };
        inbox.push(index, outcome);
    }
}
