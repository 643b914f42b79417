//! What membership believes, as a pure state machine: inputs in, the wish for a new table out. No task, no clock.
//!
//! A health event or the end of a hold-down is one more [`Input`]; a backend that is held in spite of its absence is one
//! more endpoint in `State::wanted`. Everything behind that stays as it is.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    discovery::{Endpoint, Endpoints},
    ring::{Algorithm, Base, Overlay, RingError, Table, members_of},
};

/// Something that membership learned.
#[derive(Clone, Debug)]
pub enum Input {
    /// Discovery reports this full set. An empty one is not believed.
    Discovered(Endpoints),
    /// The backend of this identity takes no records for now: its slots go to their substitutes.
    Away(Arc<str>),
    /// It takes records again: its slots return.
    Back(Arc<str>),
}

/// Why a table was replaced, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Discovery reported another set, or other addresses.
    Discovery,
    /// A backend went away.
    Away,
    /// A backend came back.
    Back,
}

/// All that decides about the next table.
#[derive(Debug)]
pub struct State {
    algorithm: Algorithm,
    discovered: Option<Endpoints>,
    /// Identities, since indexes change with the membership. Each is in `discovered`.
    away: BTreeSet<Arc<str>>,
    /// The table that was published last.
    table: Option<Arc<Table>>,
}

/// The wish for a new table: everything that it takes to build it, elsewhere.
#[derive(Debug)]
pub struct Rebuild {
    cause: Cause,
    algorithm: Algorithm,
    endpoints: Endpoints,
    away: BTreeSet<Arc<str>>,
    previous: Option<Arc<Table>>,
}

/// A table that is ready to be published, beside the one that it replaces.
#[derive(Debug)]
pub struct Change {
    /// Why.
    pub cause: Cause,
    /// The new table.
    pub table: Arc<Table>,
    /// The table before.
    pub previous: Option<Arc<Table>>,
    /// The share of slots with another owner than before; 0 for the first table.
    pub moved: f64,
}

// === impl Cause ===

impl Cause {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discovery => "discovery",
            Self::Away => "backend away",
            Self::Back => "backend back",
        }
    }
}

// === impl State ===

impl State {
    /// Nothing is known yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, discovered: None, away: BTreeSet::new(), table: None }
    }

    /// Takes note of `input`. Answers what is to be built, if anything changed; a later answer makes an earlier one void.
    pub fn apply(&mut self, input: Input) -> Option<Rebuild> {
        match input {
            Input::Discovered(endpoints) => self.discovered(endpoints),
            Input::Away(identity) => {
                let news = self.is_member(&identity) && self.away.insert(identity);
                news.then(|| self.rebuild(Cause::Away)).flatten()
            }
            Input::Back(identity) => self.away.remove(&identity).then(|| self.rebuild(Cause::Back)).flatten(),
        }
    }

    /// Takes note that `change` was published.
    pub fn commit(&mut self, change: &Change) {
        self.table = Some(Arc::clone(&change.table));
    }

    /// Takes note that what was wished for last cannot be built: the set of the last table is believed again.
    pub fn revert(&mut self) {
        self.discovered = self.table.as_ref().map(|table| Arc::from(table.backends()));
        self.forget_strangers();
    }

    fn discovered(&mut self, endpoints: Endpoints) -> Option<Rebuild> {
        let news = !endpoints.is_empty() && self.discovered.as_ref() != Some(&endpoints);
        if !news {
            return None;
        }
        self.discovered = Some(endpoints);
        self.forget_strangers();
        self.rebuild(Cause::Discovery)
    }

    fn forget_strangers(&mut self) {
        let away = std::mem::take(&mut self.away);
        self.away = away.into_iter().filter(|identity| self.is_member(identity)).collect();
    }

    fn is_member(&self, identity: &Arc<str>) -> bool {
        let is_it = |endpoint: &Endpoint| endpoint.identity == *identity;
        self.discovered.as_ref().is_some_and(|endpoints| endpoints.iter().any(is_it))
    }

    /// The membership that a table is to be built of.
    fn wanted(&self) -> Option<Endpoints> {
        self.discovered.clone()
    }

    fn rebuild(&self, cause: Cause) -> Option<Rebuild> {
        Some(Rebuild {
            cause,
            algorithm: self.algorithm,
            endpoints: self.wanted()?,
            away: self.away.clone(),
            previous: self.table.clone(),
        })
    }
}

// === impl Rebuild ===

impl Rebuild {
    /// Builds the table. Takes tens of milliseconds with hundreds of backends: for a blocking thread.
    ///
    /// What did not change is taken over from the table before, so that a new address costs next to nothing.
    pub fn run(self) -> Result<Change, RingError> {
        let base = self.base()?;
        let overlay = self.overlay(&base);
        let generation = self.previous.as_ref().map_or(1, |table| table.generation + 1);
        let table = Arc::new(Table::new(generation, base, overlay, self.endpoints));
        let moved = self.previous.as_ref().map_or(0.0, |previous| table.moved_share(previous));
        Ok(Change { cause: self.cause, table, previous: self.previous, moved })
    }

    fn base(&self) -> Result<Arc<Base>, RingError> {
        let members = members_of(&self.endpoints);
        let same = |base: &&Arc<Base>| base.algorithm() == self.algorithm && *base.members() == *members;
        match self.previous.as_ref().map(|table| table.base()).filter(same) {
            Some(base) => Ok(Arc::clone(base)),
            None => Base::build_with(self.algorithm, &members).map(Arc::new),
        }
    }

    fn overlay(&self, base: &Arc<Base>) -> Overlay {
        let indexes = (0..).zip(base.members()).filter(|(_, member)| self.away.contains(&member.identity));
        let away = indexes.map(|(index, _)| index).collect();
        let same = |table: &&Arc<Table>| Arc::ptr_eq(table.base(), base) && *table.overlay().away() == away;
        match self.previous.as_ref().filter(same) {
            Some(table) => table.overlay().clone(),
            None => base.overlay(&away),
        }
    }
}

// === impl Change ===

impl Change {
    /// Identities in the new table and not in the one before.
    pub fn added(&self) -> Vec<Arc<str>> {
        difference(Some(&self.table), self.previous.as_ref())
    }

    /// Identities in the table before and not in the new one.
    pub fn removed(&self) -> Vec<Arc<str>> {
        difference(self.previous.as_ref(), Some(&self.table))
    }
}

fn difference(of: Option<&Arc<Table>>, without: Option<&Arc<Table>>) -> Vec<Arc<str>> {
    let strange = |identity: &Arc<str>| without.is_none_or(|table| table.position(identity).is_none());
    let identities = of.into_iter().flat_map(|table| table.backends()).map(|backend| Arc::clone(&backend.identity));
    identities.filter(strange).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(hosts: &[&str], port: u16) -> Endpoints {
        let endpoint = |host: &&str| Endpoint {
            identity: (*host).into(),
            address: Some(([127, 0, 0, 1], port).into()),
            weight: 1,
        };
        hosts.iter().map(endpoint).collect()
    }

    /// Applies, builds and commits.
    fn step(state: &mut State, input: Input) -> Option<Change> {
        let change = state.apply(input)?.run().expect("the set must be placeable");
        state.commit(&change);
        Some(change)
    }

    #[test]
    fn first_set_makes_the_first_table_and_repeating_it_nothing() {
        let mut state = State::new(Algorithm::SlotsV1);
        let first = step(&mut state, Input::Discovered(endpoints(&["a", "b"], 1))).expect("must build");
        assert_eq!((first.table.generation, first.moved), (1, 0.0));
        assert_eq!(first.added(), ["a".into(), "b".into()]);
        assert!(step(&mut state, Input::Discovered(endpoints(&["a", "b"], 1))).is_none());
    }

    #[test]
    fn empty_set_is_refused() {
        let mut state = State::new(Algorithm::SlotsV1);
        assert!(step(&mut state, Input::Discovered(endpoints(&[], 1))).is_none());
        step(&mut state, Input::Discovered(endpoints(&["a", "b"], 1)));
        assert!(step(&mut state, Input::Discovered(endpoints(&[], 1))).is_none());
        let change = step(&mut state, Input::Away("a".into())).expect("the last set must still be believed");
        assert_eq!(change.table.backends().len(), 2);
    }

    #[test]
    fn new_address_reuses_base_and_overlay() {
        let mut state = State::new(Algorithm::SlotsV1);
        step(&mut state, Input::Discovered(endpoints(&["a", "b", "c"], 1)));
        let before = step(&mut state, Input::Away("b".into())).expect("must build");
        let after = step(&mut state, Input::Discovered(endpoints(&["a", "b", "c"], 2))).expect("must build");
        assert!(Arc::ptr_eq(before.table.base(), after.table.base()), "base must be reused");
        assert!(std::ptr::eq(before.table.overlay().substitutes(), after.table.overlay().substitutes()));
        assert_eq!((after.moved, after.table.generation), (0.0, 3));
        assert_eq!(after.table.backends()[0].address.map(|address| address.port()), Some(2));
    }

    #[test]
    fn backend_goes_away_and_returns_with_its_slots() {
        let mut state = State::new(Algorithm::SlotsV1);
        let first = step(&mut state, Input::Discovered(endpoints(&["a", "b", "c"], 1))).expect("must build");
        let away = step(&mut state, Input::Away("b".into())).expect("must build");
        assert_eq!(away.table.membership_fingerprint(), first.table.membership_fingerprint());
        assert_ne!(away.table.placement_fingerprint(), first.table.placement_fingerprint());
        assert!(step(&mut state, Input::Away("b".into())).is_none(), "it is away already");
        let back = step(&mut state, Input::Back("b".into())).expect("must build");
        assert_eq!(back.table.placement_fingerprint(), first.table.placement_fingerprint());
        assert_eq!(back.moved, away.moved);
    }

    #[test]
    fn strangers_and_leavers_are_never_away() {
        let mut state = State::new(Algorithm::SlotsV1);
        assert!(step(&mut state, Input::Away("b".into())).is_none(), "nobody is known yet");
        step(&mut state, Input::Discovered(endpoints(&["a", "b"], 1)));
        assert!(step(&mut state, Input::Away("x".into())).is_none());
        step(&mut state, Input::Away("b".into()));
        let left = step(&mut state, Input::Discovered(endpoints(&["a"], 1))).expect("must build");
        assert_eq!(left.removed(), ["b".into()]);
        let joined = step(&mut state, Input::Discovered(endpoints(&["a", "b"], 1))).expect("must build");
        assert!(joined.table.overlay().away().is_empty(), "who joins anew starts anew");
    }

    #[test]
    fn set_that_cannot_be_placed_leaves_the_last_one_in_force() {
        let mut state = State::new(Algorithm::SlotsV1);
        step(&mut state, Input::Discovered(endpoints(&["a", "b"], 1)));
        let mut heavy = endpoints(&["a", "c"], 1).to_vec();
        heavy[1].weight = u32::MAX;
        let rebuild = state.apply(Input::Discovered(heavy.into())).expect("a new set must be tried");
        assert!(matches!(rebuild.run(), Err(RingError::TooHeavy { .. })));
        state.revert();
        let away = step(&mut state, Input::Away("b".into())).expect("must build");
        assert_eq!(away.table.backends().len(), 2);
        assert_eq!(away.table.generation, 2);
    }
}
