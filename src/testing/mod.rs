//! What tests of several rooms share: backends whose every answer the test decides, a dispatch in front of them, parts and
//! tables. It stands on what rooms show to others and knows nothing of their insides.

mod backend;
mod http_peer;
mod parts;
mod rig;

use std::time::Duration;

pub(crate) use self::{
    backend::{Call, Script, accept_h2, listen, trailers_only},
    http_peer::{HttpConnection, HttpPeer, OK},
    parts::{large_part, many_traces, names_of, part, table},
    rig::{Rig, accepted, outcome, with_keys},
};
pub(crate) use crate::{health::HealthKind, lifecycle::Tasks};

/// Nothing here takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn patient<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("must not take that long")
}

/// Waits for a state that other tasks bring about.
pub(crate) async fn wait_until(state: impl Fn() -> bool) {
    patient(async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
