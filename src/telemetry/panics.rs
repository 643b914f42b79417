//! Counts and logs the panics of all threads, those included that are caught.

use std::{
    panic,
    sync::atomic::{AtomicU64, Ordering},
};

use super::LogLimit;

/// The number of panics so far.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Counts every panic from now on, and logs it within a limit, since what makes one request panic may do so to thousands. It
/// does not change which panics are caught.
pub fn watch() {
    let limit = LogLimit::many();
    panic::set_hook(Box::new(move |panic| {
        SEEN.fetch_add(1, Ordering::Relaxed);
        if !limit.admit_or_report(|panics| tracing::error!(panics, "more panics than the log takes")) {
            return;
        }
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let said = panic.payload().downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
        tracing::error!(at, said, "a defect of ours, please report it: panicked");
    }));
}

/// Returns the number of panics since [`watch`] was called.
pub(super) fn count() -> u64 {
    SEEN.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_that_is_caught_is_counted() {
        let (usual, before) = (panic::take_hook(), count());
        watch();
        let caught = panic::catch_unwind(|| panic!("as this test wants it"));
        panic::set_hook(usual);
        assert!(caught.is_err());
        assert!(count() > before);
    }
}
