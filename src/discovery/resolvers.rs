//! The resolvers of one pool: the one whose sets are in force, and the one of a new configuration that takes over from it
//! with its first good answer.
//!
//! **Invariant:** every endpoint that is published bears the access that it was configured with, and a configuration that
//! has found nobody yet changes neither the set nor how its members are spoken to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Gauge, gauge};
use tokio::sync::watch;

use crate::{
    access::Access,
    endpoint::{Endpoint, Endpoints, EndpointsReceiver},
    lifecycle::Tasks,
    telemetry::metrics::{DISCOVERY_CHANGE_PENDING, DISCOVERY_ENDPOINTS},
};

/// Where the resolvers of a pool publish. Cloning shares it.
#[derive(Clone)]
pub struct Resolvers {
    pool: Arc<str>,
    sender: watch::Sender<Option<Endpoints>>,
    seats: Arc<Mutex<Seats>>,
    count: Gauge,
    pending: Gauge,
}

#[derive(Default)]
struct Seats {
    in_force: Option<Seat>,
    next: Option<Seat>,
    count: u64,
}

/// A resolver, as it is known here.
struct Seat {
    number: u64,
    access: Access,
    tasks: Tasks,
}

/// The right of one resolver to publish: as soon as another took over from it, nothing that it says is heard.
pub(super) struct Publisher {
    resolvers: Resolvers,
    number: u64,
}

impl Resolvers {
    /// Those of `pool`, none yet; the receiver has what they publish.
    pub fn new(pool: &str) -> (Self, EndpointsReceiver) {
        let (sender, receiver) = watch::channel(None);
        let gauge = |name: &'static str| gauge!(name, "pool" => pool.to_owned());
        let (count, pending) = (gauge(DISCOVERY_ENDPOINTS), gauge(DISCOVERY_CHANGE_PENDING));
        (Self { pool: pool.into(), sender, seats: Arc::default(), count, pending }, receiver)
    }

    /// Speaks by `access` from now on with the members that the newest configuration found; if it has found none yet, with
    /// those that it will find.
    pub fn speak_by(&self, access: Access) {
        let mut seats = self.lock();
        if let Some(next) = &mut seats.next {
            next.access = access;
        } else if let Some(in_force) = &mut seats.in_force {
            in_force.access = access.clone();
            self.sender.send_if_modified(|set| {
                let Some(set) = set else { return false };
                *set = stamped(set, &access);
                true
            });
        }
    }

    /// Gives a resolver, which runs in `tasks`, the right to publish. It takes over with the first set that it publishes; at
    /// once if nothing was published yet.
    pub(super) fn enter(&self, access: Access, tasks: Tasks) -> Publisher {
        let mut seats = self.lock();
        seats.count += 1;
        let seat = Seat { number: seats.count, access, tasks };
        let is_first = self.sender.borrow().is_none();
        let place = if is_first { &mut seats.in_force } else { &mut seats.next };
        if let Some(before) = place.replace(seat) {
            before.tasks.stop();
        }
        self.pending.set(f64::from(u8::from(!is_first)));
        Publisher { resolvers: self.clone(), number: seats.count }
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        // Nothing panics while it is held, save for a lack of memory.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Publisher {
    /// Whether it has not taken over yet.
    pub(super) fn is_next(&self) -> bool {
        self.resolvers.lock().next.as_ref().is_some_and(|next| next.number == self.number)
    }

    /// Publishes a good answer.
    pub(super) fn publish(&self, endpoints: &[Endpoint]) {
        let Resolvers { pool, sender, count, pending, .. } = &self.resolvers;
        let mut seats = self.resolvers.lock();
        if let Some(next) = seats.next.take_if(|next| next.number == self.number) {
            if let Some(before) = seats.in_force.replace(next) {
                before.tasks.stop();
            }
            pending.set(0.0);
            tracing::info!(%pool, backends = endpoints.len(), "discovery has an answer by the new configuration: it holds now");
        }
        if let Some(in_force) = seats.in_force.as_ref().filter(|seat| seat.number == self.number) {
            count.set(u32::try_from(endpoints.len()).unwrap_or(u32::MAX));
            sender.send_replace(Some(stamped(endpoints, &in_force.access)));
        }
    }

    /// Says once that a reload waits for this resolver.
    pub(super) fn warn_of_waiting(&self) {
        tracing::warn!(
            pool = %self.resolvers.pool,
            "discovery has no good answer by the new configuration yet: the pool keeps its backends, and their TLS and headers"
        );
    }

    /// Resolves when nobody hears any more.
    pub(super) async fn closed(&self) {
        self.resolvers.sender.closed().await;
    }
}

fn stamped(endpoints: &[Endpoint], access: &Access) -> Endpoints {
    endpoints.iter().map(|endpoint| Endpoint { access: access.clone(), ..endpoint.clone() }).collect()
}
