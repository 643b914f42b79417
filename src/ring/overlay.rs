//! The overlay: substitutes for the slots of backends that are away. No other slot changes.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Base, otelcol,
    slots_v1::{Question, Ring, WHOLE},
};

/// The slots that go to substitutes for now: a pure function of the base and the set of backends that are away.
///
/// A slot's substitute is the owner that the ring without those backends returns for the probe that the slot was
/// accepted with. The bound does not apply, since it would move other slots. The base places nearly all of these slots
/// on the same substitutes once the backend has left the membership, so a failure and its discovery cause one move, not
/// two. In a ring of the Collector's load-balancing exporter, the substitute is the owner that the ring without those
/// backends has. Clones share their data.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    away: BTreeSet<u16>,
    substitutes: Arc<[(u32, u16)]>,
}

impl Base {
    /// Finds substitutes for every slot of the backends in `away`, which are indexes into [`Base::members`].
    ///
    /// If all backends are away, there are no substitutes: every backend keeps its slots and is tried again. Call it on
    /// a thread that may block.
    pub fn overlay(&self, away: &BTreeSet<u16>) -> Overlay {
        let away: BTreeSet<u16> =
            away.iter().copied().filter(|backend| usize::from(*backend) < self.members().len()).collect();
        if away.is_empty() {
            return Overlay::default();
        }
        let substitutes = match self.algorithm().exporter_ring() {
            None => self.substitutes_v1(&away),
            Some(rules) => self.substitutes_of_exporter(rules, &away),
        };
        Overlay { away, substitutes }
    }

    fn substitutes_v1(&self, away: &BTreeSet<u16>) -> Arc<[(u32, u16)]> {
        let question = |slot| Question { slot, probe: self.probes().of(slot) };
        let questions: Vec<Question> = self.slots_of(away).map(question).collect();
        let ring = Ring::new(self.members(), |backend| !away.contains(&backend), WHOLE, || questions.clone());
        questions.iter().filter_map(|question| Some((question.slot, ring.get(*question)?))).collect()
    }

    fn substitutes_of_exporter(&self, rules: &otelcol::Rules, away: &BTreeSet<u16>) -> Arc<[(u32, u16)]> {
        let Some(owners) = rules.place(self.members(), |backend| !away.contains(&backend)) else {
            return Arc::default();
        };
        self.slots_of(away).filter_map(|slot| Some((slot, *owners.get(slot as usize)?))).collect()
    }

    /// Returns the slots of these backends, ascending.
    fn slots_of(&self, backends: &BTreeSet<u16>) -> impl Iterator<Item = u32> {
        (0..).zip(self.owners()).filter(|(_, owner)| backends.contains(owner)).map(|(slot, _)| slot)
    }
}

impl Overlay {
    /// The backends that are away, as indexes into the base's members.
    pub fn away(&self) -> &BTreeSet<u16> {
        &self.away
    }

    /// The slots that go to substitutes, ascending, each with its substitute.
    pub fn substitutes(&self) -> &[(u32, u16)] {
        &self.substitutes
    }

    /// Returns the owners of `base` with the substitutes applied.
    pub(super) fn applied_to(&self, base: &Base) -> Arc<[u16]> {
        let mut owners = base.shared_owners();
        if !self.substitutes.is_empty() {
            let copy = Arc::make_mut(&mut owners);
            for (slot, substitute) in self.substitutes.iter() {
                if let Some(owner) = copy.get_mut(*slot as usize) {
                    *owner = *substitute;
                }
            }
        }
        owners
    }
}
