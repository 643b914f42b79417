//! Placement of slots on backends, and temporary changes to it. Pure: no I/O, no clock, no tasks.
//!
//! A ring is a slot function, [`Algorithm::slot_of`], and a slot table, `owners[slot]`. From the bottom up:
//!
//! - [`slots_v1`] fills the slots from a consistent-hash ring with a bound on each backend's slots; `otelcol` has the
//!   three rings of the Collector's load-balancing exporter, whose slots are the positions of its ring;
//! - [`Base`] is a membership with the owners of its slots, a pure function of the membership;
//! - [`Overlay`] lists the slots that go to substitutes while their owner is away;
//! - [`History`] keeps the tables that were replaced a short time ago, for traces that began with them;
//! - [`Table`] is one immutable snapshot of all this, with the backends' addresses. Requests see only tables.
//!
//! **Invariant:** the same membership gives the same owners in every replica, platform and release. The byte order,
//! hash seed, names and numbers in [`slots_v1`] never change; `tests/golden/slots_v1.csv` pins the results. The rings
//! of the exporter are pinned by `tests/golden/otelcol.csv`, which the exporter's own source has written.
//!
//! # Example
//!
//! Which of three backends gets a trace:
//!
//! ```
//! use spanring::{
//!     endpoint::{Endpoint, Endpoints},
//!     ring::{Algorithm, Table},
//! };
//!
//! // Sorted by identity. No address is needed: only the identity is hashed.
//! let endpoints: Endpoints =
//!     ["10.0.0.1:4317", "10.0.0.2:4317", "10.0.0.3:4317"].map(|identity| Endpoint::new(identity, None)).into();
//! let table = Table::of(1, Algorithm::SlotsV1, &endpoints)?;
//!
//! let trace_id = 0x4bf92f3577b34da6a3ce929d0e0e4736_u128.to_be_bytes();
//! let owner = table.owner(&trace_id);
//! assert_eq!(&*table.backends()[owner as usize].identity, "10.0.0.1:4317");
//!
//! // Another process with the same backends has the same table.
//! let elsewhere = Table::of(1, Algorithm::SlotsV1, &endpoints)?;
//! assert_eq!(elsewhere.owner(&trace_id), owner);
//! assert_eq!(elsewhere.membership_fingerprint(), table.membership_fingerprint());
//! # Ok::<(), spanring::ring::RingError>(())
//! ```

use std::sync::Arc;

pub mod memory;
pub mod slots_v1;

mod base;
mod begun;
mod fingerprint;
pub mod history;
mod otelcol;
mod overlay;
mod table;

pub use base::Base;
pub use history::{History, Owners, Times};
pub use overlay::Overlay;
pub use slots_v1::slot_of;
pub use table::{Table, Tables, members_of};

pub use crate::settings::Algorithm;

/// A backend as placement sees it, without its address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The identity, which is hashed.
    pub identity: Arc<str>,
    /// The share of slots relative to other members.
    pub weight: u32,
    /// What the exporter's rings hash in place of the identity, if that differs.
    pub exporter_name: Option<Arc<str>>,
}

/// Why a membership cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// There are no backends.
    #[error("a ring needs at least one backend")]
    Empty,
    /// A backend has weight 0. It would own nothing and still count as a member.
    #[error("backend {identity:?} has weight 0; leave it out or give it at least 1")]
    Weightless {
        /// Identity of the backend.
        identity: Arc<str>,
    },
    /// One identity is listed with two weights.
    #[error("backend {identity:?} is listed with two weights; list it once")]
    Duplicate {
        /// Identity of the backend.
        identity: Arc<str>,
    },
    /// The weights are too large: there would be too few slots for even shares, and too many points to sort.
    #[error("the backends' weights add up to {total}, more than {most}; use fewer backends or smaller weights")]
    TooHeavy {
        /// The sum of all weights.
        total: u64,
        /// The maximum.
        most: u64,
    },
    /// A backend has a weight, but the algorithm has none.
    #[error("backend {identity:?} has weight {weight}, but all backends of {algorithm} own alike; give it weight 1")]
    Weighted {
        /// Identity of the backend.
        identity: Arc<str>,
        /// Its weight.
        weight: u32,
        /// The name of the algorithm.
        algorithm: &'static str,
    },
    /// The exporter's ring would hash the same text for two backends.
    #[error("backends {identities:?} are both {name:?} on the ring of {algorithm}; write one of them otherwise")]
    SameName {
        /// Identities of the backends.
        identities: [Arc<str>; 2],
        /// The text that is hashed.
        name: Arc<str>,
        /// The name of the algorithm.
        algorithm: &'static str,
    },
}

// === impl Member ===

impl Member {
    /// The text that the exporter's rings hash.
    pub fn exporter_name(&self) -> &str {
        self.exporter_name.as_deref().unwrap_or(&self.identity)
    }
}

// === impl Algorithm ===

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 4] = [Self::SlotsV1, Self::OtelcolV1, Self::OtelcolV2, Self::OtelcolV3];

    /// The name used in configuration files, fingerprints and admin pages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SlotsV1 => "slots_v1",
            Self::OtelcolV1 => "otelcol_v1",
            Self::OtelcolV2 => "otelcol_v2",
            Self::OtelcolV3 => "otelcol_v3",
        }
    }

    /// Returns the algorithm with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The number of slots.
    pub const fn slots(self) -> u32 {
        match self {
            Self::SlotsV1 => slots_v1::SLOTS,
            Self::OtelcolV1 => otelcol::V1.positions,
            Self::OtelcolV2 => otelcol::V2.positions,
            Self::OtelcolV3 => otelcol::V3.positions,
        }
    }

    /// Returns the slot of a routing key, below [`Algorithm::slots`].
    #[inline]
    pub fn slot_of(self, key: &[u8]) -> u32 {
        // Each cut does this for each record, so that only the usual ring's function is inlined.
        if self == Self::SlotsV1 { slot_of(key) } else { self.position_of(key) }
    }

    /// Returns the position of a routing key on a ring of the exporter.
    #[inline(never)]
    fn position_of(self, key: &[u8]) -> u32 {
        self.exporter_ring().map_or_else(|| slot_of(key), |rules| rules.position(crc32fast::hash(key)))
    }

    /// The parameters of placement that are not 0, by name.
    pub fn named_parameters(self) -> [(&'static str, u64); 3] {
        match self.exporter_ring() {
            None => slots_v1::NAMED_PARAMETERS,
            Some(rules) => rules.named_parameters(),
        }
    }

    /// Whether this is a ring of the Collector's load-balancing exporter.
    pub fn is_of_exporter(self) -> bool {
        self.exporter_ring().is_some()
    }

    /// The parameters of placement, for the fingerprint.
    fn parameters(self) -> [u64; 4] {
        match self.exporter_ring() {
            None => slots_v1::PARAMETERS,
            Some(rules) => rules.parameters(),
        }
    }

    /// The rules of the exporter's ring, if it is one.
    fn exporter_ring(self) -> Option<&'static otelcol::Rules> {
        match self {
            Self::SlotsV1 => None,
            Self::OtelcolV1 => Some(&otelcol::V1),
            Self::OtelcolV2 => Some(&otelcol::V2),
            Self::OtelcolV3 => Some(&otelcol::V3),
        }
    }
}

#[cfg(test)]
mod tests;
