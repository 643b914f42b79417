//! The transport without queues: what it takes, what it says became of it, against backends whose every answer the test
//! decides.

use tokio::time::Instant;

use super::Contents;
use crate::otlp::{Framed, Metadata, Signal};

/// Messages that go in one call.
#[derive(Clone, Debug)]
pub(super) struct Messages(pub(super) Vec<Framed>);

impl Contents for Messages {
    type Held = ();

    fn signal(&self) -> Signal {
        Signal::Traces
    }

    fn metadata(&self) -> Option<&Metadata> {
        None
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn payload_len(&self) -> usize {
        self.0.iter().map(Framed::payload_len).sum()
    }

    fn messages(&self) -> impl ExactSizeIterator<Item = &Framed> {
        self.0.iter()
    }

    fn hold(&self) {}
}
