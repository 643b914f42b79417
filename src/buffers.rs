//! A pool of large buffers that are reused by later requests, since writing to fresh pages costs more than the copy
//! itself. It depends on no other module.
//!
//! Buffers for socket reads and for copied parts are allocated and freed with each request. An allocator gives such
//! large memory back to the kernel, which clears every page before its next use. This pool keeps up to 4 MiB of freed
//! buffers instead. [`trim`], called once a second, frees those that were not used since.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// The smallest buffer that is pooled, in bytes. The allocator serves smaller ones without calling the kernel (glibc:
/// below `M_MMAP_THRESHOLD`).
const LARGE: usize = 64 << 10;

/// The most bytes that are kept. They are outside of the memory budget.
const KEPT: usize = 4 << 20;

/// A kept buffer is reused only for a capacity of at least half of its own, because its whole size counts as held
/// memory.
const LEAST_SHARE: usize = 2;

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), bytes: 0 });

struct Pool {
    idle: Vec<Idle>,
    bytes: usize,
}

struct Idle {
    buffer: Vec<u8>,
    /// Whether [`trim`] was called since it was added.
    is_old: bool,
}

/// Returns an empty buffer with a capacity of at least `capacity` bytes.
pub fn take(capacity: usize) -> Vec<u8> {
    if capacity < LARGE {
        return Vec::with_capacity(capacity);
    }
    pool().take(capacity).unwrap_or_else(|| Vec::with_capacity(capacity))
}

/// Moves a buffer's bytes to one with a capacity of at least `capacity`. Without a kept buffer of that size, the buffer
/// is reallocated, which may avoid holding two buffers at once.
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

/// Makes a buffer's bytes shareable. When the last share of a large buffer is dropped, the buffer returns to the pool.
pub fn share(buffer: Vec<u8>) -> Bytes {
    if buffer.capacity() < LARGE { Bytes::from(buffer) } else { Bytes::from_owner(Large(buffer)) }
}

/// Returns a buffer to the pool.
pub fn give(buffer: Vec<u8>) {
    if buffer.capacity() >= LARGE {
        pool().give(buffer);
    }
}

/// Frees the kept buffers that were not used since the last call.
pub fn trim() {
    let old = pool().trim();
    // Unmapping is slow, so it happens without the lock.
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
        // Prefer the most recent one: its pages are most likely in a CPU cache.
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

/// The owner of a shared large buffer, which returns the buffer to the pool on drop.
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
