//! Parts on their way: whole, or cut into pieces that a backend's message limit allows and joined again into one outcome.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use tokio::time::Instant;
use tonic::Code;

use super::{Cause, Part, PartOutcome, join::Inbox};
use crate::otlp::{Framed, Signal, framed::PREFIX_LEN};

/// A part, or a piece of one, that waits for a call or is in one.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) message: Framed,
    pub(super) records: u32,
    pub(super) signal: Signal,
    /// Goes in a call of its own.
    pub(super) alone: bool,
    /// Was in a merged call that the backend refused for good.
    pub(super) apart: bool,
    /// Times that the backend left it unprocessed.
    pub(super) unprocessed: u8,
    /// Since when it waits.
    pub(super) since: Instant,
    home: Home,
}

/// Whom to tell.
#[derive(Debug)]
enum Home {
    Part { inbox: Arc<Inbox>, backend: u32, index: u32 },
    Piece(Arc<Cut>),
}

/// What became of one queued entry.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate {
    Accepted { rejected: u64, message: Option<String> },
    Owed { owner: Arc<str>, after: Option<Duration>, reached: bool, cause: Cause },
    Rejected { code: Code, message: String },
}

/// A part that was cut: gathers what became of its pieces.
#[derive(Debug)]
struct Cut {
    inbox: Arc<Inbox>,
    backend: u32,
    index: u32,
    signal: Signal,
    alone: bool,
    /// The part as it was, where pieces can't be joined again (profiles: each carries its own dictionary).
    whole: Option<(Framed, u32)>,
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    left: usize,
    accepted: bool,
    rejected: u64,
    message: Option<String>,
    refusal: Option<Code>,
    owed: Vec<(Framed, u32)>,
    after: Option<Duration>,
    reached: bool,
    /// Who was to have what is owed, and what happened last.
    cause: Option<(Arc<str>, Cause)>,
}

impl Queued {
    /// What a whole part becomes when it is queued.
    pub(super) fn from_part(part: Part, inbox: &Arc<Inbox>, now: Instant) -> Self {
        let home = Home::Part { inbox: Arc::clone(inbox), backend: part.backend, index: part.index };
        Self::new(part.message, part.records, part.signal, part.alone, now, home)
    }

    /// Cuts a part into entries of at most `max` payload bytes; one entry when it is small enough or can't be cut.
    pub(super) fn cut(part: Part, inbox: &Arc<Inbox>, max: usize, now: Instant) -> Vec<Self> {
        let Part { signal, alone, backend, index, records, .. } = part;
        let mut pieces = pieces_of(&part, max);
        if pieces.len() <= 1 {
            return vec![Self::from_part(part, inbox, now)];
        }
        let whole = (signal == Signal::Profiles).then(|| (part.message.clone(), records));
        drop(part);
        let tally = Mutex::new(Tally { left: pieces.len(), ..Tally::default() });
        let cut = Arc::new(Cut { inbox: Arc::clone(inbox), backend, index, signal, alone, whole, tally });
        pieces
            .drain(..)
            .map(|(records, message)| Self::new(message, records, signal, alone, now, Home::Piece(Arc::clone(&cut))))
            .collect()
    }

    fn new(message: Framed, records: u32, signal: Signal, alone: bool, since: Instant, home: Home) -> Self {
        Self { message, records, signal, alone, apart: false, unprocessed: 0, since, home }
    }

    /// The mailbox of its request.
    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        match &self.home {
            Home::Part { inbox, .. } => inbox,
            Home::Piece(cut) => &cut.inbox,
        }
    }

    /// What it takes of a queue's room.
    pub(super) fn cost(&self) -> usize {
        self.message.framed_len()
    }

    /// Tells its request.
    pub(super) fn complete(self, fate: Fate) {
        match self.home {
            Home::Part { inbox, backend, index } => {
                let outcome = match fate {
                    Fate::Accepted { rejected, message } => PartOutcome::Accepted { rejected, message },
                    Fate::Rejected { code, message } => PartOutcome::Rejected { code, message },
                    Fate::Owed { owner, after, reached, cause } => {
                        let Self { message, records, signal, alone, .. } = self;
                        let part = Part { message, records, signal, backend, alone, index };
                        PartOutcome::Retry { owner, after, reached, cause, rejected: 0, message: None, part }
                    }
                };
                inbox.push(index, outcome);
            }
            Home::Piece(cut) => cut.settle(self.message, self.records, fate),
        }
    }
}

impl Cut {
    fn settle(&self, message: Framed, records: u32, fate: Fate) {
        let tally = {
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.add(message, records, fate);
            if tally.left > 0 {
                return;
            }
            std::mem::take(&mut *tally)
        };
        self.inbox.push(self.index, self.outcome(tally));
    }

    /// One outcome for all pieces: what is still owed goes back, else what was accepted counts.
    fn outcome(&self, tally: Tally) -> PartOutcome {
        let Tally { accepted, rejected, message, refusal, owed, after, reached, cause, .. } = tally;
        match (cause, refusal) {
            (Some((owner, cause)), _) => {
                let (framed, records) = self.join(owed);
                let Self { signal, backend, alone, index, .. } = *self;
                let part = Part { message: framed, records, signal, backend, alone, index };
                PartOutcome::Retry { owner, after, reached, cause, rejected, message, part }
            }
            (None, Some(code)) if !accepted => PartOutcome::Rejected { code, message: message.unwrap_or_default() },
            (None, _) => PartOutcome::Accepted { rejected, message },
        }
    }

    /// One message of the pieces that are owed: requests one after the other are a request.
    fn join(&self, mut owed: Vec<(Framed, u32)>) -> (Framed, u32) {
        if owed.len() == 1 {
            return owed.pop().unwrap_or_default();
        }
        if let Some((message, records)) = &self.whole {
            return (message.clone(), *records);
        }
        let len: usize = owed.iter().map(|(message, _)| message.payload_len()).sum();
        let mut buffer = BytesMut::with_capacity(PREFIX_LEN + len);
        buffer.put_bytes(0, PREFIX_LEN);
        let mut records = 0_u32;
        for (message, count) in &owed {
            message.payload_runs().for_each(|run| buffer.extend_from_slice(run));
            records = records.saturating_add(*count);
        }
        // The pieces came from one message, which fitted the prefix.
        (Framed::seal(buffer).unwrap_or_default(), records)
    }
}

impl Tally {
    fn add(&mut self, message: Framed, records: u32, fate: Fate) {
        self.left = self.left.saturating_sub(1);
        match fate {
            Fate::Accepted { rejected, message } => {
                self.accepted = true;
                self.rejected = self.rejected.saturating_add(rejected);
                self.message = self.message.take().or(message);
            }
            Fate::Rejected { code, message } => {
                self.refusal.get_or_insert(code);
                self.rejected = self.rejected.saturating_add(u64::from(records));
                self.message = self.message.take().or(Some(message));
            }
            Fate::Owed { owner, after, reached, cause } => {
                self.owed.push((message, records));
                self.after = self.after.max(after);
                self.reached |= reached;
                self.cause = Some((owner, cause));
            }
        }
    }
}

/// Pieces of at most `max` payload bytes each, cut at record borders.
fn pieces_of(part: &Part, max: usize) -> Vec<(u32, Framed)> {
    if part.message.payload_len() <= max {
        return Vec::new();
    }
    // The message was walked when it was admitted; should it be malformed all the same, its backend says so.
    crate::split::by_size(part.signal, &part.message, max).unwrap_or_default()
}
