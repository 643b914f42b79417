//! Parts that are not sent, since their owner has copies of their records from the same request already.

use std::sync::Arc;

use super::{
    super::copies::{Copies, Fate},
    Delivery, Failed,
};
use crate::dispatch::{Cause, Part, View};

/// A part that is not sent, since its owner has copies of its records.
pub(super) struct Adopted {
    part: Part,
    owner: Arc<str>,
    /// The target of the copies.
    target: u16,
}

impl Delivery<'_> {
    /// Keeps parts whose records their owners have as copies, until these are delivered or given up.
    pub(super) fn adopt(&mut self, parts: Vec<Part>, view: &View) {
        for part in parts {
            let owner = view.identity_of(part.backend);
            let target = self.copies.as_ref().and_then(|copies| copies.target(view.table(), part.backend));
            // Without such a target the copies count as given up.
            self.adopted.push(Adopted { part, owner, target: target.unwrap_or(u16::MAX) });
        }
    }

    /// Counts adopted parts whose copies are delivered, and sends those whose copies were given up.
    pub(super) fn settle_adopted(&mut self) {
        if self.adopted.is_empty() {
            return;
        }
        let Some(copies) = &mut self.copies else { return };
        copies.update();
        let fates: Vec<Fate> = self.adopted.iter().map(|adopted| copies.fate(adopted.target)).collect();
        for (adopted, fate) in std::mem::take(&mut self.adopted).into_iter().zip(fates) {
            match fate {
                Fate::UnderWay => self.adopted.push(adopted),
                Fate::Delivered => {
                    self.route.metrics.copies.counted.increment(adopted.part.records.into());
                    self.tally.accepted(adopted.part.records, 0, None);
                    self.settled(adopted.part.index);
                }
                Fate::GivenUp => {
                    let Adopted { part, owner, .. } = adopted;
                    self.wait_for(Failed { part, owner, cause: Cause::Abandoned }, None);
                }
            }
        }
    }
}

/// Waits until something has happened to the copies, and handles it.
///
/// Cancel safety: as [`Copies::step`].
pub(super) async fn step(copies: &mut Option<Copies>) {
    match copies {
        Some(copies) => copies.step().await,
        None => std::future::pending().await,
    }
}
