//! A file of every span that a sink took, written before the answer: it outlives the process, however that ends.
//!
//! One record a span: trace ID, span ID, when it was sent (its end time, which a unique run sets) and when it arrived.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{SpanId, TraceId};

/// Bytes of a record: 16 + 8 + 8 + 8.
const RECORD: usize = 40;

/// A span as a sink took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// Its trace.
    pub trace: TraceId,
    /// Its ID.
    pub span: SpanId,
    /// When it ended, in nanoseconds since 1970: when it was sent, in a unique run of our generator.
    pub sent: u64,
    /// When its request was whole and taken, in nanoseconds since 1970.
    pub arrived: u64,
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal(Mutex<File>);

/// A span that is to be noted: trace, span, when it was sent.
pub(super) type Noted = (TraceId, SpanId, u64);

impl Journal {
    /// Opens a journal to go on with, or begins one.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Mutex::new(OpenOptions::new().create(true).append(true).open(path)?)))
    }

    /// Notes spans. What the kernel has survives the process; a machine that dies is not thought of.
    pub(super) fn append(&self, spans: &[Noted]) -> io::Result<()> {
        let arrived = now_ns().to_le_bytes();
        let mut records = Vec::with_capacity(spans.len() * RECORD);
        for (trace, span, sent) in spans {
            records.extend_from_slice(trace);
            records.extend_from_slice(span);
            records.extend_from_slice(&sent.to_le_bytes());
            records.extend_from_slice(&arrived);
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&records)
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads a journal, whole records only: the last may have been cut short by the end of its process.
pub fn read_journal(path: &Path) -> io::Result<Vec<JournalEntry>> {
    let bytes = std::fs::read(path)?;
    let (records, _cut_short) = bytes.as_chunks::<RECORD>();
    Ok(records.iter().filter_map(entry).collect())
}

fn entry(record: &[u8; RECORD]) -> Option<JournalEntry> {
    let number = |at: usize| Some(u64::from_le_bytes(record.get(at..at + 8)?.try_into().ok()?));
    Some(JournalEntry {
        trace: record.get(..16)?.try_into().ok()?,
        span: record.get(16..24)?.try_into().ok()?,
        sent: number(24)?,
        arrived: number(32)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_back_and_a_record_cut_short_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        Journal::open(&path).unwrap().append(&[([1; 16], [2; 8], 3), ([4; 16], [5; 8], 6)]).unwrap();
        Journal::open(&path).unwrap().append(&[([7; 16], [8; 8], 9)]).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend([0; RECORD - 1]);
        std::fs::write(&path, bytes).unwrap();
        let entries = read_journal(&path).unwrap();
        let spans: Vec<Noted> = entries.iter().map(|entry| (entry.trace, entry.span, entry.sent)).collect();
        assert_eq!(spans, [([1; 16], [2; 8], 3), ([4; 16], [5; 8], 6), ([7; 16], [8; 8], 9)]);
        assert!(entries[2].arrived >= entries[0].arrived && entries[0].arrived > 1_700_000_000_000_000_000);
    }
}
