//! Opens further places in time: one task for all backends that sleeps while nothing waits.
//!
//! No timer per part: while something waits it ticks and looks at the backends that have something waiting.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::backend::Shared;

/// Time between two looks: tokio's timer has no finer grain.
const TICK: Duration = Duration::from_millis(1);

/// Looks that find nothing before it sleeps again: falling asleep and being woken costs more than a few looks.
const IDLE_TICKS: u32 = 32;

/// How the opener is woken.
#[derive(Debug, Default)]
pub(super) struct Opener {
    armed: AtomicBool,
    notify: Notify,
}

impl Opener {
    /// Says that something waits.
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
        // What came between the last look and the store found the opener armed.
        if poke_all(shared) {
            shared.opener.arm();
        }
    }
}

/// Looks at every backend once; whether anything waits.
fn poke_all(shared: &Shared) -> bool {
    let now = Instant::now();
    shared.all.load().iter().filter(|backend| backend.poke(now)).count() > 0
}
