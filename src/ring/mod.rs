//! Placement: slots, their owners and what changes them for a while. Pure: no I/O, no clock, no tasks.
//!
//! A ring is a slot function and a slot table: [`Algorithm::slot_of`] and `owners[slot]`. From the bottom up:
//! - `slots_v1` fills the slots from a consistent-hash ring under a bound ([`slots_v1`]);
//! - [`Base`] is a membership with its owners, a pure function of it;
//! - [`Overlay`] lists the slots that go elsewhere while their owner is away;
//! - [`Table`] is one immutable snapshot of both, with the addresses to dial. Requests see nothing else.
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
//!
//! **Invariant:** the same membership gives the same owners in every replica, platform and release. Byte order, hash seed,
//! names and numbers in [`slots_v1`] never change; `tests/golden/slots_v1.csv` pins what comes of them.

use std::sync::Arc;

pub mod slots_v1;

mod base;
mod fingerprint;
mod overlay;
mod table;

pub use base::Base;
pub use overlay::Overlay;
pub use slots_v1::slot_of;
pub use table::{Table, Tables, members_of};

pub use crate::settings::Algorithm;

/// One backend as placement sees it: nothing that is dialled, only what is hashed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// What is hashed.
    pub identity: Arc<str>,
    /// Share of the slots relative to others.
    pub weight: u32,
}

/// Why a membership has no placement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// There is nobody to own a slot.
    #[error("a ring needs at least one backend")]
    Empty,
    /// A weight of zero would own nothing and still count as a member.
    #[error("backend {identity:?} has weight 0; leave it out or give it at least 1")]
    Weightless {
        /// The backend.
        identity: Arc<str>,
    },
    /// One identity came with two weights.
    #[error("backend {identity:?} is listed with two weights; list it once")]
    Duplicate {
        /// The backend.
        identity: Arc<str>,
    },
    /// The slots would be too few for even shares, and the points too many to sort.
    #[error("the backends' weights add up to {total}, more than {most}; use fewer backends or smaller weights")]
    TooHeavy {
        /// The sum of all weights.
        total: u64,
        /// What it may be at most.
        most: u64,
    },
}

// === impl Algorithm ===

impl Algorithm {
    /// The name used in configuration files, fingerprints and the admin pages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SlotsV1 => "slots_v1",
        }
    }

    /// The algorithm of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::SlotsV1].into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The number of slots.
    pub const fn slots(self) -> u32 {
        match self {
            Self::SlotsV1 => slots_v1::SLOTS,
        }
    }

    /// The slot of a routing key, below [`Algorithm::slots`].
    #[inline]
    pub fn slot_of(self, key: &[u8]) -> u32 {
        match self {
            Self::SlotsV1 => slot_of(key),
        }
    }

    /// The numbers that take part in placement, by name: all that are not 0.
    pub fn named_parameters(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::SlotsV1 => &slots_v1::NAMED_PARAMETERS,
        }
    }

    /// The numbers that take part in placement, for the fingerprint.
    fn parameters(self) -> [u64; 4] {
        match self {
            Self::SlotsV1 => slots_v1::PARAMETERS,
        }
    }
}

#[cfg(test)]
mod tests;
