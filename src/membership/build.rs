//! From a view of the pool to the next table, on a blocking thread; what did not change is taken over.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    endpoint::Endpoints,
    ring::{Algorithm, Base, Overlay, RingError, Table, members_of},
};

/// Why a table was replaced, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Discovery reported another set, or other addresses.
    Discovery,
    /// A backend left after it was held for a while, or since it failed too.
    Departure,
    /// The pool is configured in another way.
    Configuration,
    /// A backend was ejected.
    Ejection,
    /// A backend came back.
    Return,
    /// So many backends fail that none counts as ejected any more.
    Panic,
}

/// Who is a member and who of them is away: all that a table depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The membership, sorted by identity.
    pub endpoints: Endpoints,
    /// Whose slots go elsewhere. Identities, since indexes change with the membership.
    pub away: BTreeSet<Arc<str>>,
}

/// The wish for a new table: everything that it takes to build it, elsewhere.
#[derive(Debug)]
pub struct Rebuild {
    pub(super) cause: Cause,
    pub(super) algorithm: Algorithm,
    pub(super) view: View,
    pub(super) previous: Option<Arc<Table>>,
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
            Self::Departure => "departure",
            Self::Configuration => "configuration",
            Self::Ejection => "ejection",
            Self::Return => "return",
            Self::Panic => "panic",
        }
    }
}

// === impl Rebuild ===

impl Rebuild {
    /// What the table is to be built of.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Builds the table. Takes tens of milliseconds with hundreds of backends: for a blocking thread.
    ///
    /// What did not change is taken over from the table before, so that a new address costs next to nothing.
    pub fn run(self) -> Result<Change, RingError> {
        let base = self.base()?;
        let overlay = self.overlay(&base);
        let generation = self.previous.as_ref().map_or(1, |table| table.generation + 1);
        let table = Arc::new(Table::new(generation, base, overlay, self.view.endpoints));
        let moved = self.previous.as_ref().map_or(0.0, |previous| table.moved_share(previous));
        Ok(Change { cause: self.cause, table, previous: self.previous, moved })
    }

    fn base(&self) -> Result<Arc<Base>, RingError> {
        let members = members_of(&self.view.endpoints);
        let same = |base: &&Arc<Base>| base.algorithm() == self.algorithm && *base.members() == *members;
        match self.previous.as_ref().map(|table| table.base()).filter(same) {
            Some(base) => Ok(Arc::clone(base)),
            None => Base::build_with(self.algorithm, &members).map(Arc::new),
        }
    }

    fn overlay(&self, base: &Arc<Base>) -> Overlay {
        let indexes = (0..).zip(base.members()).filter(|(_, member)| self.view.away.contains(&member.identity));
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
