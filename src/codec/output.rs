//! An inflated message while it is made: in buffers that are taken from the memory budget before they are allocated.
//!
//! A message whose size is stated gets one buffer of that size. Any other lies in several buffers, so that no byte is
//! copied, and none counts twice, while the message grows.

use bytes::Bytes;

use super::InflateError;
use crate::{
    budget::{Buffer, Permit},
    otlp::{
        Framed,
        framed::{PREFIX_LEN, prefix_of},
    },
};

/// The least and the largest capacity of a buffer for a message whose size is not stated. The largest is as long as the
/// buffers that bodies are read into.
const LEAST: usize = 4 << 10;
const MOST: usize = 256 << 10;

/// A message that inflates to more than [`SUSPECT`] bytes and to more than this many times its size is refused. Telemetry
/// has ratios of 5 to 50, and repeated records rarely one above 200.
const MAX_RATIO: usize = 1_000;
const SUSPECT: usize = 8 << 20;

/// The inflated message, with room for its prefix in front.
pub(super) struct Output<'a> {
    full: Vec<Vec<u8>>,
    /// The bytes in `full`.
    full_len: usize,
    /// The buffer that is being filled.
    pub(super) open: Buffer,
    permit: &'a mut Permit,
    /// The length of the compressed message, which `permit` covers too.
    compressed: usize,
    limit: usize,
    /// Whether the message is kept. If not, its bytes are only counted.
    is_kept: bool,
}

impl<'a> Output<'a> {
    pub(super) fn new(compressed: usize, limit: usize, permit: &'a mut Permit) -> Self {
        Self { full: Vec::new(), full_len: 0, open: Buffer::default(), permit, compressed, limit, is_kept: true }
    }

    /// Allocates the buffer of a message that states its size. If it can be no message of that size, nothing is
    /// inflated.
    pub(super) fn start_stated(&mut self, stated: u64) -> Result<(), InflateError> {
        let size = usize::try_from(stated).ok().filter(|size| *size <= self.limit).ok_or(InflateError::TooLarge)?;
        self.check_ratio(size)?;
        // One byte more than stated, so that a decoder which has still to read its end does not need a further buffer.
        self.start(size + 1)
    }

    /// Allocates the first buffer of a message that is guessed to have `guess` bytes.
    pub(super) fn start_guessed(&mut self, guess: usize) -> Result<(), InflateError> {
        self.start(guess.clamp(LEAST, MOST).min(self.limit.saturating_add(1)))
    }

    /// Allocates a buffer for a message that states a size above the limit. Nothing is kept of it: it is inflated as far as
    /// the limit only to find out whether it is too large or broken.
    pub(super) fn start_unkept(&mut self) -> Result<(), InflateError> {
        self.is_kept = false;
        self.start(LEAST)
    }

    /// Whether a message of `size` bytes is within the limit.
    pub(super) fn takes(&self, size: usize) -> bool {
        size <= self.limit
    }

    fn start(&mut self, size: usize) -> Result<(), InflateError> {
        self.reach(PREFIX_LEN + size)?;
        self.open.bytes.extend_from_slice(&[0; PREFIX_LEN]);
        Ok(())
    }

    fn reach(&mut self, capacity: usize) -> Result<(), InflateError> {
        if self.open.reach(capacity, self.permit) {
            Ok(())
        } else {
            Err(InflateError::NoRoom(self.permit.bytes().saturating_add(capacity)))
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.open.bytes.len() < self.open.bytes.capacity()
    }

    /// Adds a buffer if the last one is full. All together have at most one byte more than the limit. If that byte gets
    /// used, the message is too large.
    pub(super) fn make_room(&mut self) -> Result<(), InflateError> {
        if self.has_room() {
            return Ok(());
        }
        let most = self.limit.saturating_add(PREFIX_LEN + 1);
        let len = self.full_len + self.open.bytes.len();
        if len >= most {
            return Err(InflateError::TooLarge);
        }
        self.check_ratio(len)?;
        if !self.is_kept {
            self.full_len = len;
            self.open.bytes.clear();
            return Ok(());
        }
        let full = std::mem::take(&mut self.open.bytes);
        self.full_len += full.len();
        self.full.push(full);
        let next = len.clamp(LEAST, MOST).min(most - len);
        self.reach(next).or_else(|_no_room| self.reach(next.min(LEAST)))
    }

    fn check_ratio(&self, len: usize) -> Result<(), InflateError> {
        let is_bomb = len > SUSPECT && len > self.compressed.saturating_mul(MAX_RATIO);
        if is_bomb { Err(InflateError::Ratio) } else { Ok(()) }
    }

    /// Returns the message and its size in memory.
    pub(super) fn seal(self) -> Result<(Framed, usize), InflateError> {
        let Self { mut full, full_len, open, permit, limit, is_kept, .. } = self;
        let len = (full_len + open.bytes.len()).saturating_sub(PREFIX_LEN);
        let prefix =
            u32::try_from(len).ok().filter(|_| is_kept && len <= limit).map(prefix_of).ok_or(InflateError::TooLarge)?;
        let mut last = open.bytes;
        if !full.is_empty() && last.len() < last.capacity() / 2 {
            let capacity = last.capacity();
            last.shrink_to_fit();
            permit.shrink_to(permit.bytes().saturating_sub(capacity - last.capacity()));
        }
        full.push(last);
        let held = full.iter().map(Vec::capacity).sum();
        if let Some(spare) = full.first_mut().and_then(|first| first.first_chunk_mut::<PREFIX_LEN>()) {
            *spare = prefix;
        }
        let message = Framed::from_chunks(full.into_iter().map(Bytes::from).collect()).ok_or(InflateError::TooLarge)?;
        Ok((message, held))
    }
}
