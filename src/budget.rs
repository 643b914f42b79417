//! The account of the memory that grows with load or with peers. Everything of that kind is taken from it before it is
//! allocated, and given back when it is freed.
//!
//! The limit is divided into two shares. Clients' connections and streams have one, and requests have the other:
//! otherwise many idle clients could leave no room for the requests of the others, or requests none for new clients.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The part of the limit that clients' connections and streams may hold: a third.
const CLIENTS_PART: usize = 3;

/// The process's own memory counts for at most this part of the limit: a half. A smaller limit than the process needs
/// would leave nothing for requests.
const FIXED_PART: usize = 2;

/// The part of the requests' share that the requests of one connection may hold: a fourth. A single request may hold
/// more.
const CONNECTION_PART: usize = 4;

/// The purpose of memory. The account counts each purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Open connections of clients, with their read buffers.
    Connections,
    /// Frames of clients that are longer than usual, and the read buffers that headers of clients keep.
    Frames,
    /// Streams of clients, from their headers to their answers.
    Streams,
    /// Requests: bodies, inflated messages and the parts that are cut from them.
    Requests,
    /// Pages and streams of the admin port.
    Admin,
    /// Tables that are published.
    Tables,
    /// Tables that were replaced, for as long as a hand-off needs them.
    KeptTables,
    /// Tables that are being built.
    Builds,
    /// Connections to backends that are called by OTLP/HTTP.
    Backends,
}

/// A process-wide account of memory. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clients: Share,
    requests: Share,
    used_for: [AtomicUsize; Use::ALL.len()],
}

/// A part of the limit.
#[derive(Debug)]
struct Share {
    limit: AtomicUsize,
    used: AtomicUsize,
}

/// What the requests of one connection hold. Clones share it.
#[derive(Clone, Debug)]
pub struct Portion {
    budget: Budget,
    used: Arc<AtomicUsize>,
}

/// How a limit is divided, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// The memory of the process without clients.
    pub fixed: usize,
    /// The share of clients' connections and streams.
    pub clients: usize,
    /// The share of requests.
    pub requests: usize,
}

// === impl Use ===

impl Use {
    /// All purposes.
    pub const ALL: [Self; 9] = [
        Self::Connections,
        Self::Frames,
        Self::Streams,
        Self::Requests,
        Self::Admin,
        Self::Tables,
        Self::KeptTables,
        Self::Builds,
        Self::Backends,
    ];

    /// Returns the value of the metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Frames => "frames",
            Self::Streams => "streams",
            Self::Requests => "requests",
            Self::Admin => "admin",
            Self::Tables => "tables",
            Self::KeptTables => "kept_tables",
            Self::Builds => "builds",
            Self::Backends => "backends",
        }
    }
}

// === impl Division ===

impl Division {
    /// Divides `limit` bytes, of which the process itself needs `fixed`.
    pub fn of(limit: usize, fixed: usize) -> Self {
        let fixed = fixed.min(limit / FIXED_PART);
        let clients = (limit - fixed) / CLIENTS_PART;
        Self { fixed, clients, requests: limit - fixed - clients }
    }
}

// === impl Share ===

impl Share {
    fn new(limit: usize) -> Self {
        Self { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) }
    }

    fn try_add(&self, bytes: usize) -> bool {
        let limit = self.limit.load(Relaxed);
        self.used.fetch_update(Relaxed, Relaxed, |used| used.checked_add(bytes).filter(|sum| *sum <= limit)).is_ok()
    }
}

// === impl Budget ===

impl Budget {
    /// Creates an account whose shares have `limit` bytes each.
    pub fn new(limit: usize) -> Self {
        Self::divided(Division { fixed: 0, clients: limit, requests: limit })
    }

    /// Creates an account with these shares.
    pub fn divided(division: Division) -> Self {
        Self(Arc::new(Inner {
            clients: Share::new(division.clients),
            requests: Share::new(division.requests),
            used_for: Default::default(),
        }))
    }

    /// Returns the share of requests, in bytes.
    pub fn limit(&self) -> usize {
        self.0.requests.limit.load(Relaxed)
    }

    /// Returns how many bytes one request can get while the process serves nothing else. Tables that are being built or that
    /// were replaced do not count: they are gone soon.
    pub fn alone(&self) -> usize {
        self.limit().saturating_sub(self.used_for(Use::Tables))
    }

    /// Returns the share of clients' connections and streams, in bytes.
    pub fn clients_limit(&self) -> usize {
        self.0.clients.limit.load(Relaxed)
    }

    /// Changes the shares. Permits that are held keep their bytes. While they exceed a lower share, no further bytes
    /// are granted.
    pub fn divide(&self, division: Division) {
        self.0.clients.limit.store(division.clients, Relaxed);
        self.0.requests.limit.store(division.requests, Relaxed);
    }

    /// Returns the number of bytes that requests hold now.
    pub fn used(&self) -> usize {
        self.used_for(Use::Requests)
    }

    /// Returns the number of bytes that are held of the clients' share now.
    pub fn clients_used(&self) -> usize {
        self.0.clients.used.load(Relaxed)
    }

    /// Returns the number of bytes held for a purpose now.
    pub fn used_for(&self, purpose: Use) -> usize {
        self.counter(purpose).load(Relaxed)
    }

    /// Returns an empty permit for requests, which can grow.
    pub fn permit(&self) -> Permit {
        self.permit_for(Use::Requests)
    }

    /// Returns an empty permit, which can grow.
    pub fn permit_for(&self, purpose: Use) -> Permit {
        Permit { budget: self.clone(), purpose, portion: None, is_again: false, bytes: 0 }
    }

    /// Takes `bytes` for a request, or returns `None` if there is no room for them.
    pub fn take(&self, bytes: usize) -> Option<Permit> {
        self.take_for(Use::Requests, bytes)
    }

    /// Takes `bytes`, or returns `None` if there is no room for them.
    pub fn take_for(&self, purpose: Use, bytes: usize) -> Option<Permit> {
        let mut permit = self.permit_for(purpose);
        permit.grow(bytes).then_some(permit)
    }

    /// Takes `bytes` whether there is room or not: for memory that is needed to keep the process right, and that is
    /// bounded by other means.
    pub fn count_for(&self, purpose: Use, bytes: usize) -> Permit {
        self.share(purpose).used.fetch_add(bytes, Relaxed);
        self.counter(purpose).fetch_add(bytes, Relaxed);
        Permit { budget: self.clone(), purpose, portion: None, is_again: false, bytes }
    }

    fn share(&self, purpose: Use) -> &Share {
        match purpose {
            Use::Connections | Use::Frames | Use::Streams | Use::Admin => &self.0.clients,
            Use::Requests | Use::Tables | Use::KeptTables | Use::Builds | Use::Backends => &self.0.requests,
        }
    }

    fn counter(&self, purpose: Use) -> &AtomicUsize {
        let [connections, frames, streams, requests, admin, tables, kept_tables, builds, backends] = &self.0.used_for;
        match purpose {
            Use::Connections => connections,
            Use::Frames => frames,
            Use::Streams => streams,
            Use::Requests => requests,
            Use::Admin => admin,
            Use::Tables => tables,
            Use::KeptTables => kept_tables,
            Use::Builds => builds,
            Use::Backends => backends,
        }
    }

    fn try_add(&self, purpose: Use, bytes: usize) -> bool {
        let granted = self.share(purpose).try_add(bytes);
        if granted {
            self.counter(purpose).fetch_add(bytes, Relaxed);
        }
        granted
    }

    fn give_back(&self, purpose: Use, bytes: usize) {
        self.share(purpose).used.fetch_sub(bytes, Relaxed);
        self.counter(purpose).fetch_sub(bytes, Relaxed);
    }
}

// === impl Portion ===

impl Portion {
    /// Creates the portion of another connection.
    pub fn of(budget: &Budget) -> Self {
        Self { budget: budget.clone(), used: Arc::default() }
    }

    /// Returns an empty permit for one request, which can grow.
    pub fn permit(&self) -> Permit {
        let mut permit = self.budget.permit();
        permit.portion = Some(Arc::clone(&self.used));
        permit
    }
}

/// Bytes taken from an account. They are given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: Budget,
    purpose: Use,
    /// The bytes that the requests of the same connection hold, if it is a request's.
    portion: Option<Arc<AtomicUsize>>,
    /// Whether the portion does not bound it, although it counts there.
    is_again: bool,
    bytes: usize,
}

impl Permit {
    /// Takes `more` bytes in addition. Returns `false`, without any change, if there is no room for them.
    #[must_use]
    pub fn grow(&mut self, more: usize) -> bool {
        if more == 0 {
            return true;
        }
        if !self.add_to_portion(more) {
            return false;
        }
        let grown = self.budget.try_add(self.purpose, more);
        if grown {
            self.bytes += more;
        } else {
            self.take_from_portion(more);
        }
        grown
    }

    /// Takes `bytes` for a copy of something that this permit's request holds, or returns `None` if the account has no room for
    /// them. The connection's portion counts them and does not bound them: it bounds what they are copies of, and a request
    /// that holds all of the portion must not wait for itself.
    pub fn take_again(&self, bytes: usize) -> Option<Self> {
        let (budget, portion) = (self.budget.clone(), self.portion.clone());
        let mut permit = Self { budget, purpose: self.purpose, portion, is_again: true, bytes: 0 };
        permit.grow(bytes).then_some(permit)
    }

    /// Returns whether the connection may hold `more` bytes, and counts them. Its only request may always.
    fn add_to_portion(&self, more: usize) -> bool {
        let Some(used) = &self.portion else { return true };
        if self.is_again {
            used.fetch_add(more, Relaxed);
            return true;
        }
        let most = self.limit() / CONNECTION_PART;
        let added = |used: usize| used.checked_add(more).filter(|sum| *sum <= most || used == self.bytes);
        used.fetch_update(Relaxed, Relaxed, added).is_ok()
    }

    fn take_from_portion(&self, bytes: usize) {
        if let Some(used) = &self.portion {
            used.fetch_sub(bytes, Relaxed);
        }
    }

    fn give_back(&self, bytes: usize) {
        self.take_from_portion(bytes);
        self.budget.give_back(self.purpose, bytes);
    }

    /// Gives back all but `keep` bytes.
    pub fn shrink_to(&mut self, keep: usize) {
        if let Some(extra) = self.bytes.checked_sub(keep) {
            self.bytes = keep;
            self.give_back(extra);
        }
    }

    /// Returns the number of bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the share that the bytes are taken from, in bytes.
    fn limit(&self) -> usize {
        self.budget.share(self.purpose).limit.load(Relaxed)
    }

    /// Returns how many bytes one request can get while the process serves nothing else.
    pub fn alone(&self) -> usize {
        self.budget.alone()
    }
}

/// A buffer whose capacity is taken from an account before it is allocated.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Buffer {
    /// Grows to a capacity of `capacity` bytes. Returns `false`, without any change, if the budget has no room for them.
    #[must_use]
    pub fn reach(&mut self, capacity: usize, permit: &mut Permit) -> bool {
        // Growing may copy. Both buffers exist for that moment, and both are counted.
        let before = self.bytes.capacity();
        if !permit.grow(capacity) {
            return false;
        }
        self.bytes.reserve_exact(capacity.saturating_sub(self.bytes.len()));
        permit.shrink_to(permit.bytes().saturating_sub(before));
        // The allocator may have given more than was asked for.
        let extra = self.bytes.capacity().saturating_sub(capacity);
        if !permit.grow(extra) {
            self.bytes.shrink_to(capacity);
        }
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_of_a_connection_get_a_fourth_or_one_of_them_all_there_is() {
        let budget = Budget::new(100);
        let (portion, other) = (Portion::of(&budget), Portion::of(&budget));
        let mut permits = [portion.permit(), portion.permit()];
        assert!(permits[0].grow(15) && permits[1].grow(10), "a fourth for all of them");
        assert!(!permits[0].grow(1) && !permits[1].grow(1), "and no more");
        assert_eq!((permits[0].bytes(), permits[1].bytes(), budget.used()), (15, 10, 25));
        let mut others = other.permit();
        assert!(others.grow(25), "the other connection has its own portion");
        permits[1].shrink_to(0);
        assert!(permits[0].grow(60), "the only request of a connection may have more");
        assert!(!permits[0].grow(1) && budget.used() == 100, "but not more than there is");
        assert!(!permits[1].grow(1), "meanwhile there is no room for others of its connection");
        drop(permits);
        assert_eq!((budget.used(), portion.used.load(Relaxed)), (25, 0));
        assert!(!portion.permit().grow(76) && portion.permit().grow(75), "what was refused is not held");
        drop(others);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_copy_counts_in_the_portion_of_its_request_and_is_bounded_by_the_account_only() {
        let budget = Budget::new(100);
        let portion = Portion::of(&budget);
        let mut request = portion.permit();
        assert!(request.grow(40), "the only request of its connection");
        let mut copy = request.take_again(20).expect("the portion is full, and the account has room");
        assert!(copy.grow(10), "what is cut from it, too");
        assert_eq!((portion.used.load(Relaxed), budget.used()), (70, 70));
        request.shrink_to(0);
        assert!(!portion.permit().grow(1), "a further request of the connection has no room beside it");
        assert!(copy.take_again(71).is_none() && copy.take_again(30).is_some(), "the account is the bound");
        drop(copy);
        assert_eq!((portion.used.load(Relaxed), budget.used()), (0, 0));
    }

    #[test]
    fn tables_leave_less_for_one_request() {
        let budget = Budget::new(100);
        let _held = (budget.count_for(Use::Tables, 30), budget.count_for(Use::KeptTables, 20), budget.take(50));
        assert_eq!(budget.alone(), 70);
    }

    #[test]
    fn a_limit_below_what_is_held_takes_nothing_back() {
        let budget = Budget::new(100);
        let held = budget.take(80);
        budget.divide(Division::of(50 * 3 / 2, 0));
        assert_eq!((budget.limit(), budget.used()), (50, 80));
        assert!(budget.take(1).is_none(), "nothing more while too much is held");
        drop(held);
        assert!(budget.take(51).is_none() && budget.take(50).is_some());
    }

    #[test]
    fn a_limit_is_divided_between_the_process_clients_and_requests() {
        let mib = |division: Division| (division.fixed >> 20, division.clients >> 20, division.requests >> 20);
        assert_eq!(mib(Division::of(384 << 20, 24 << 20)), (24, 120, 240));
        assert_eq!(
            mib(Division::of(12 << 20, 24 << 20)),
            (6, 2, 4),
            "a limit below the process's own memory leaves a half"
        );
    }

    #[test]
    fn each_purpose_is_counted_and_has_the_room_of_its_share() {
        let budget = Budget::divided(Division { fixed: 0, clients: 10, requests: 20 });
        let connection = budget.take_for(Use::Connections, 6);
        let stream = budget.take_for(Use::Streams, 4);
        assert!(budget.take_for(Use::Streams, 1).is_none(), "both are of the clients' share");
        let request = budget.take(15);
        assert!(budget.take_for(Use::Admin, 1).is_none());
        let table = budget.count_for(Use::Tables, 30);
        assert!(budget.take(1).is_none(), "what is counted without room leaves none for others");
        let used = || Use::ALL.map(|purpose| budget.used_for(purpose));
        assert_eq!((used(), budget.clients_used(), budget.used()), ([6, 0, 4, 15, 0, 30, 0, 0, 0], 10, 15));
        drop((connection, stream, request, table));
        assert_eq!((used(), budget.clients_used(), budget.used()), ([0; 9], 0, 0));
    }
}
