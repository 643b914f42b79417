//! What is known of a request's records: how many were accepted or refused, and what the client is told in the end.

use std::sync::Arc;

use tonic::Code;

use crate::{
    dispatch::Cause,
    otlp::{Outcome, Reason, Refusal},
};

/// Longest `partial_success.error_message` that is passed on, in bytes (design 3).
const MAX_MESSAGE: usize = 256;

/// What is known of a request's records by now.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) records: u64,
    /// Taken by their backends.
    pub(super) accepted: u64,
    /// Refused for good: at the door, in a backend's `partial_success`, or with their whole part.
    rejected: u64,
    /// Of these, those whose whole part was refused.
    refused: u64,
    message: Option<String>,
    /// The code of the refused parts, while they agree.
    code: Option<Code>,
    pub(super) last_failure: Option<(Arc<str>, Cause)>,
}

impl Tally {
    /// What is known of a request that was just cut.
    pub(super) fn new(records: u64, rejected: u64) -> Self {
        Self { records, rejected, message: refused_at_the_door(rejected), ..Self::default() }
    }

    pub(super) fn accepted(&mut self, records: u32, rejected: u64, message: Option<String>) {
        self.accepted += u64::from(records).saturating_sub(rejected);
        self.rejected += rejected;
        if self.message.is_none() {
            self.message = message;
        }
    }

    #[cold]
    pub(super) fn refused(&mut self, records: u32, code: Code, message: String) {
        let records = u64::from(records);
        self.code = match self.code {
            None if self.refused == 0 => Some(code),
            Some(before) if before == code => Some(code),
            // Codes that differ stay forgotten: `refused` is no longer 0.
            _ => None,
        };
        self.refused += records;
        self.rejected += records;
        if self.message.is_none() {
            self.message = Some(message);
        }
    }

    /// Whether every record of the request was accepted or refused, each once.
    pub(super) fn is_complete(&self) -> bool {
        self.accepted + self.rejected == self.records
    }

    pub(super) fn outcome(self) -> Result<Outcome, Refusal> {
        let message = self.message.map(shortened);
        if self.refused > 0 && self.refused == self.records {
            let code = self.code.unwrap_or(Code::InvalidArgument);
            return Err(Refusal::permanent(code, Reason::Backend, message.unwrap_or_default()));
        }
        Ok(Outcome::Accepted { rejected: self.rejected, message })
    }
}

/// The outcome of a request of which nothing was to be sent.
pub(super) fn nothing_to_send(rejected: u64) -> Outcome {
    Outcome::Accepted { rejected, message: refused_at_the_door(rejected) }
}

fn refused_at_the_door(rejected: u64) -> Option<String> {
    (rejected > 0)
        .then(|| "records with an invalid trace ID were refused: invalid_trace_id is reject for this signal".to_owned())
}

fn shortened(mut message: String) -> String {
    let end = (0..=MAX_MESSAGE.min(message.len())).rev().find(|end| message.is_char_boundary(*end));
    message.truncate(end.unwrap_or(0));
    message
}
