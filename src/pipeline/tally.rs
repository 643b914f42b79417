//! Counts a request's accepted and refused records, and derives the client's answer from them.

use std::sync::Arc;

use tonic::Code;

use crate::{
    dispatch::Cause,
    otlp::{Outcome, Reason, Refusal},
};

/// The counts of a request's records.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) records: u64,
    /// The number that backends have accepted.
    pub(super) accepted: u64,
    /// The number that were permanently refused: by the proxy, in a backend's `partial_success`, or with their whole
    /// part.
    rejected: u64,
    /// The number of rejected records whose whole part was refused.
    refused: u64,
    message: Option<String>,
    /// The common code of the refused parts, if there is one.
    code: Option<Code>,
    pub(super) last_failure: Option<(Arc<str>, Cause)>,
}

impl Tally {
    /// Creates the counts of a request that was just cut.
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
            // After two different codes there is no common one: `refused` is no longer 0.
            _ => None,
        };
        self.refused += records;
        self.rejected += records;
        if self.message.is_none() {
            self.message = Some(message);
        }
    }

    /// Returns whether every record of the request was accepted or refused exactly once.
    pub(super) fn is_complete(&self) -> bool {
        self.accepted + self.rejected == self.records
    }

    pub(super) fn outcome(self) -> Result<Outcome, Refusal> {
        let message = self.message;
        if self.refused > 0 && self.refused == self.records {
            let code = self.code.unwrap_or(Code::InvalidArgument);
            return Err(Refusal::permanent(code, Reason::Backend, message.unwrap_or_default()));
        }
        Ok(Outcome::Accepted { rejected: self.rejected, message })
    }
}

/// Returns the outcome of a request that has no records to send.
pub(super) fn nothing_to_send(rejected: u64) -> Outcome {
    Outcome::Accepted { rejected, message: refused_at_the_door(rejected) }
}

fn refused_at_the_door(rejected: u64) -> Option<String> {
    (rejected > 0)
        .then(|| "records with an invalid trace ID were refused: invalid_trace_id is reject for this signal".to_owned())
}
