//! What the client of a request is told whose parts were not all acknowledged in time.

use std::sync::Arc;

use super::{Delivery, Placed};
use crate::otlp::{Reason, Refusal};

/// The most backends that the message of a late request names.
const NAMED: usize = 3;

impl Delivery<'_> {
    #[cold]
    pub(super) fn late_refusal(&self) -> Refusal {
        let message =
            format!("not all of {} records were acknowledged in time; {}", self.tally.records, self.missing_answers());
        Refusal::retryable(Reason::Deadline, message)
    }

    /// Names the backends whose answers are missing, and the last failure.
    #[cold]
    pub(super) fn missing_answers(&self) -> String {
        let waiting = self.waiting.indices();
        let under_way = |(index, placed): &(u32, &Placed)| placed.open && waiting.binary_search(index).is_err();
        let mut silent: Vec<Arc<str>> =
            (0..).zip(&self.placed).filter(under_way).map(|(_, placed)| self.owner_of(placed)).collect();
        let failed_last = self.tally.last_failure.as_ref().map(|(owner, _)| owner);
        silent.retain(|owner| Some(owner) != failed_last);
        silent.sort_unstable();
        silent.dedup();
        let more = silent.len().saturating_sub(NAMED);
        silent.truncate(NAMED);
        let mut phrases = Vec::new();
        if !silent.is_empty() {
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            phrases.push(format!("no answer yet from backend {}{more}", silent.join(", ")));
        }
        if let Some((owner, cause)) = &self.tally.last_failure {
            phrases.push(format!("backend {owner}: {cause}"));
        }
        phrases.join("; ")
    }
}
