//! A file with an entry for every span that a sink accepted. Entries are written before the request is acknowledged, so
//! they survive if the process is killed.
//!
//! An entry has the trace ID, the span ID, the time at which the span was sent (its end time, which a unique run sets)
//! and the time at which it arrived.
//!
//! Entries have a fixed size and no separators, so a partial entry would make all later ones unreadable. Therefore, the
//! rest of an entry that a killed process or a failed write left behind is cut off before anything is appended.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{SpanId, TraceId};

/// Size of an entry in bytes: 16 + 8 + 8 + 8.
const RECORD: usize = 40;

/// A span that a sink accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// Trace ID.
    pub trace: TraceId,
    /// Span ID.
    pub span: SpanId,
    /// End time of the span, in nanoseconds since 1970. In a unique run of our generator this is when it was sent.
    pub sent: u64,
    /// When its request had been received completely, in nanoseconds since 1970.
    pub arrived: u64,
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal<S = File>(Mutex<Entries<S>>);

/// File of a journal. It is appended to, and truncated after a failed write.
pub(super) trait Store: Write {
    /// Truncates the file to `len` bytes.
    fn cut(&mut self, len: u64) -> io::Result<()>;
}

/// A file of complete entries.
#[derive(Debug)]
struct Entries<S> {
    store: S,
    /// Size of the complete entries in bytes.
    len: u64,
    /// Whether the file may contain a partial entry after them.
    torn: bool,
}

/// A new entry: trace ID, span ID, time sent.
pub(super) type NewEntry = (TraceId, SpanId, u64);

impl Store for File {
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}

impl Journal {
    /// Opens an existing journal, without a partial entry at its end, or creates one. No other process may have it
    /// open.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let len = file.metadata()?.len();
        Self::over(file, len)
    }
}

impl<S: Store> Journal<S> {
    /// Creates a journal over a file of `len` bytes.
    fn over(store: S, len: u64) -> io::Result<Self> {
        let whole = len - len % RECORD as u64;
        let mut records = Entries { store, len: whole, torn: whole != len };
        records.cut_partial_entry()?;
        Ok(Self(Mutex::new(records)))
    }

    /// Appends all entries or none. They are not synced to disk: they survive the end of the process, not that of the
    /// machine.
    pub(super) fn append(&self, spans: &[NewEntry]) -> io::Result<()> {
        let arrived = now_ns().to_le_bytes();
        let mut records = Vec::with_capacity(spans.len() * RECORD);
        for (trace, span, sent) in spans {
            records.extend_from_slice(trace);
            records.extend_from_slice(span);
            records.extend_from_slice(&sent.to_le_bytes());
            records.extend_from_slice(&arrived);
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).append(&records)
    }
}

impl<S: Store> Entries<S> {
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        self.cut_partial_entry()?;
        self.torn = true;
        match self.store.write_all(records) {
            Ok(()) => {
                self.len += records.len() as u64;
                self.torn = false;
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.cut_partial_entry() {
                    tracing::error!(%error, "cannot cut the journal; it takes nothing until that succeeds");
                }
                Err(error)
            }
        }
    }

    /// Cuts off what a failed write left behind.
    fn cut_partial_entry(&mut self) -> io::Result<()> {
        if self.torn {
            self.store.cut(self.len)?;
            self.torn = false;
        }
        Ok(())
    }
}

/// Returns the current time in nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads the complete entries of a journal. The last entry may be partial if the process was killed.
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

    const SPANS: [NewEntry; 3] = [([1; 16], [2; 8], 3), ([4; 16], [5; 8], 6), ([7; 16], [8; 8], 9)];

    fn spans(path: &Path) -> Vec<NewEntry> {
        read_journal(path).unwrap().iter().map(|entry| (entry.trace, entry.span, entry.sent)).collect()
    }

    #[test]
    fn entries_are_read_back_without_a_partial_one_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        Journal::open(&path).unwrap().append(&SPANS[..2]).unwrap();
        Journal::open(&path).unwrap().append(&SPANS[2..]).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend([0; RECORD - 1]);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(spans(&path), SPANS);
        let entries = read_journal(&path).unwrap();
        assert!(entries[2].arrived >= entries[0].arrived && entries[0].arrived > 1_700_000_000_000_000_000);
    }

    #[test]
    fn a_partial_entry_is_cut_off_before_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        for torn in [1, RECORD - 1] {
            Journal::open(&path).unwrap().append(&SPANS[..2]).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.extend(vec![0xff; torn]);
            std::fs::write(&path, bytes).unwrap();
            Journal::open(&path).unwrap().append(&SPANS[2..]).unwrap();
            assert_eq!(spans(&path), SPANS);
            std::fs::remove_file(&path).unwrap();
        }
    }

    /// A file on a disk with room for `room` bytes, which can be truncated `cuts` times.
    struct Small {
        file: File,
        room: usize,
        cuts: usize,
    }

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = self.file.write(&bytes[..bytes.len().min(self.room)])?;
            self.room -= taken;
            if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }

        fn flush(&mut self) -> io::Result<()> {
            self.file.flush()
        }
    }

    impl Store for Small {
        fn cut(&mut self, len: u64) -> io::Result<()> {
            self.cuts = self.cuts.checked_sub(1).ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
            self.file.cut(len)
        }
    }

    fn small(path: &Path, room: usize, cuts: usize) -> Journal<Small> {
        let file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        Journal::over(Small { file, room, cuts }, 0).unwrap()
    }

    fn now_has(journal: &Journal<Small>, room: usize, cuts: usize) {
        let mut whole = journal.0.lock().unwrap();
        (whole.store.room, whole.store.cuts) = (room, cuts);
    }

    #[test]
    fn a_failed_write_leaves_no_partial_entry() {
        let dir = tempfile::tempdir().unwrap();
        // The disk becomes full before, within, at the end of and after the first of two entries.
        for left in [0, 1, RECORD, RECORD + 7] {
            let path = dir.path().join(left.to_string());
            let journal = small(&path, RECORD + left, 1);
            journal.append(&SPANS[..1]).unwrap();
            assert_eq!(journal.append(&SPANS[..2]).unwrap_err().kind(), io::ErrorKind::StorageFull, "{left}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), RECORD as u64, "{left}");
            now_has(&journal, usize::MAX, 0);
            journal.append(&SPANS[1..]).unwrap();
            assert_eq!(spans(&path), SPANS, "{left}");
        }
    }

    #[test]
    fn a_journal_that_cannot_be_truncated_accepts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = small(&path, RECORD + 7, 0);
        journal.append(&SPANS[..1]).unwrap();
        assert_eq!(journal.append(&SPANS[1..]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        now_has(&journal, usize::MAX, 0);
        assert_eq!(journal.append(&SPANS[1..]).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(spans(&path), SPANS[..1]);
        now_has(&journal, usize::MAX, 1);
        journal.append(&SPANS[1..]).unwrap();
        assert_eq!(spans(&path), SPANS);
    }
}
