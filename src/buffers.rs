//! Large buffers, kept for the next request: fresh pages cost more than the copy into them. Depends on nothing of ours.
//!
//! What is gathered for a socket, and parts that are copied, come and go with each request. An allocator gives such memory
//! back to the kernel, which then clears every page anew. Here up to 4 MiB of freed buffers wait for their next use;
//! [`trim`], called once a second, gives back what was not used since.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Smaller buffers are the allocator's: it serves them without asking the kernel (glibc: below `M_MMAP_THRESHOLD`).
const LARGE: usize = 64 << 10;

/// Bytes that wait for their next use, at most. They are outside of the memory budget.
const KEPT: usize = 4 << 20;

/// A kept buffer serves a request for at least this share of it: memory that is held is memory that is counted.
const LEAST_SHARE: usize = 2;

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), bytes: 0 });

struct Pool {
    idle: Vec<Idle>,
    bytes: usize,
}

struct Idle {
    buffer: Vec<u8>,
    /// [`trim`] was called since it was put here.
    is_old: bool,
}

/// An empty buffer with room for at least `capacity` bytes.
pub fn take(capacity: usize) -> Vec<u8> {
    if capacity < LARGE {
        return Vec::with_capacity(capacity);
    }
    pool().take(capacity).unwrap_or_else(|| Vec::with_capacity(capacity))
}

/// Moves a buffer's bytes into one with room for at least `capacity`, without holding both where that can be.
pub fn grow(mut buffer: Vec<u8>, capacity: usize) -> Vec<u8> {
    let kept = if capacity < LARGE { None } else { pool().take(capacity) };
    let Some(mut grown) = kept else {
        buffer.reserve_exact(capacity.saturating_sub(buffer.len()));
        return buffer;
    };
    grown.extend_from_slice(&buffer);
    give(buffer);
    grown
}

/// Shares a buffer's bytes; when the last share is dropped, a large buffer waits for its next use.
pub fn share(buffer: Vec<u8>) -> Bytes {
    if buffer.capacity() < LARGE { Bytes::from(buffer) } else { Bytes::from_owner(Large(buffer)) }
}

/// Gives a buffer back without having shared it.
pub fn give(buffer: Vec<u8>) {
    if buffer.capacity() >= LARGE {
        pool().give(buffer);
    }
}

/// Frees what was not used since the last call.
pub fn trim() {
    let old = pool().trim();
    // Unmapping takes its time: not under the lock.
    drop(old);
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn take(&mut self, capacity: usize) -> Option<Vec<u8>> {
        let fits = |idle: &Idle| {
            let has = idle.buffer.capacity();
            has >= capacity && has / LEAST_SHARE <= capacity
        };
        // The youngest first: its pages are most likely in a cache.
        let at = self.idle.iter().rposition(fits)?;
        let buffer = self.idle.remove(at).buffer;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        let bytes = self.bytes.saturating_add(buffer.capacity());
        if bytes <= KEPT {
            buffer.clear();
            self.bytes = bytes;
            self.idle.push(Idle { buffer, is_old: false });
        }
    }

    fn trim(&mut self) -> Vec<Idle> {
        let (old, mut young): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.idle).into_iter().partition(|idle| idle.is_old);
        young.iter_mut().for_each(|idle| idle.is_old = true);
        self.bytes = young.iter().map(|idle| idle.buffer.capacity()).sum();
        self.idle = young;
        old
    }
}

/// What a share of a large buffer holds on to.
struct Large(Vec<u8>);

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Pool {
        Pool { idle: Vec::new(), bytes: 0 }
    }

    #[test]
    fn a_buffer_is_used_again_unless_it_is_far_too_large() {
        let mut pool = empty();
        pool.give(Vec::with_capacity(4 * LARGE));
        assert!(pool.take(LARGE).is_none(), "a quarter of it must not hold all of it");
        assert!(pool.take(5 * LARGE).is_none());
        let buffer = pool.take(3 * LARGE).unwrap();
        assert_eq!((buffer.capacity(), buffer.len(), pool.bytes), (4 * LARGE, 0, 0));
    }

    #[test]
    fn no_more_is_kept_than_the_bound() {
        let mut pool = empty();
        for _ in 0..100 {
            pool.give(Vec::with_capacity(1 << 20));
        }
        assert_eq!(pool.bytes, KEPT);
        assert_eq!(pool.idle.len(), KEPT >> 20);
    }

    #[test]
    fn what_is_not_used_for_a_round_is_freed() {
        let mut pool = empty();
        pool.give(Vec::with_capacity(LARGE));
        assert!(pool.trim().is_empty());
        pool.give(Vec::with_capacity(LARGE));
        assert_eq!(pool.trim().len(), 1);
        assert_eq!(pool.bytes, LARGE);
        assert_eq!(pool.trim().len(), 1);
        assert_eq!(pool.bytes, 0);
    }

    #[test]
    fn shares_keep_their_bytes() {
        let mut buffer = take(LARGE);
        buffer.extend_from_slice(b"abcdef");
        let bytes = share(buffer);
        let (front, back) = (bytes.slice(..3), bytes.slice(3..));
        drop(bytes);
        assert_eq!((&front[..], &back[..]), (&b"abc"[..], &b"def"[..]));
    }
}
