//! The opener: one task for all backends of a pool that begins further calls as parts have waited long enough.
//!
//! It replaces a timer for each part. While parts wait, it checks the queues at a fixed interval; otherwise it sleeps.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::backend::Shared;

/// Time between two checks: the resolution of tokio's timer.
const TICK: Duration = Duration::from_millis(1);

/// Number of checks without a waiting part before the task sleeps. Sleeping and being woken costs more than a few checks.
const IDLE_TICKS: u32 = 32;

/// The handle that wakes the opener.
#[derive(Debug, Default)]
pub(super) struct Opener {
    armed: AtomicBool,
    notify: Notify,
}

impl Opener {
    /// Notes that a part waits.
    pub(super) fn arm(&self) {
        if !self.armed.load(Ordering::Relaxed) && !self.armed.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }
}

/// Runs until the tasks are stopped.
pub(super) async fn run(shared: Arc<Shared>) {
    tokio::select! {
        () = shared.tasks.stopped() => {}
        () = tick(&shared) => {}
    }
}

async fn tick(shared: &Shared) {
    loop {
        shared.opener.notify.notified().await;
        let mut idle = 0;
        while idle < IDLE_TICKS {
            tokio::time::sleep(TICK).await;
            idle = if poke_all(shared) { 0 } else { idle + 1 };
        }
        shared.opener.armed.store(false, Ordering::Release);
        // Parts that were queued between the last check and the store found the opener armed, so it was not woken for them.
        if poke_all(shared) {
            shared.opener.arm();
        }
    }
}

/// Checks every backend once. Returns whether parts wait.
fn poke_all(shared: &Shared) -> bool {
    let now = Instant::now();
    shared.all.load().iter().filter(|backend| backend.poke(now)).count() > 0
}
