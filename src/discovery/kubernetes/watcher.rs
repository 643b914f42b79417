//! Keeps the EndpointSlices of a Service up to date, and publishes the set of backends whenever it changes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{
    super::{
        jittered,
        metrics::{Meters, SUCCESS},
        resolvers::Publisher,
        service::ServiceName,
    },
    api::{Api, Place},
    failure::Failure,
    join::{Joined, Rules, join, join_unready},
    log::Log,
    slices::{Event, Slice},
    unready::Unready,
};
use crate::{
    endpoint::{Endpoint, Endpoints},
    lifecycle::Tasks,
    settings::KubernetesResolver,
};

/// The times of a watcher. Only tests use other values than the default.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long a watch lasts. Azure's load balancer drops connections that are idle for 240 s.
    pub(super) watch: Duration,
    /// How much longer than that the client waits for the end of the watch.
    pub(super) grace: Duration,
    /// The wait before the first attempt after a failure. Each further one is twice as long.
    pub(super) first_retry: Duration,
    /// The longest wait before an attempt.
    pub(super) longest_retry: Duration,
    /// A watch that ends sooner than this without an event counts as a failure, and two lists have this time between
    /// them.
    pub(super) shortest: Duration,
}

impl Default for Pace {
    /// The waits are those of kube's and Go's own clients: 0.8 s to 30 s.
    fn default() -> Self {
        Self {
            watch: Duration::from_secs(200),
            grace: Duration::from_secs(5),
            first_retry: Duration::from_millis(800),
            longest_retry: Duration::from_secs(30),
            shortest: Duration::from_secs(2),
        }
    }
}

/// The greatest number of slices of a Service. A pool has at most 65,535 backends, and a slice 100 unless configured
/// otherwise; a Service with two address families has twice as many.
const MAX_SLICES: usize = 10_000;

/// The state of one pool's `k8s` resolver.
pub(super) struct Watcher {
    place: Place,
    pace: Pace,
    service: ServiceName,
    timeout: Duration,
    tasks: Tasks,
    meters: Meters,
    rules: Rules,
    /// The client; `None` before the first request and after each failure, so that address, token and certificates
    /// are read again.
    api: Option<Api>,
    /// The slices of the last list and of the events since then, by name.
    slices: BTreeMap<String, Slice>,
    /// The version after which a watch goes on; `None` if a list is needed.
    version: Option<String>,
    listed_at: Option<Instant>,
    retry: Duration,
    published: Option<Endpoints>,
    unready: Unready,
    log: Log,
}

impl Watcher {
    /// Creates the state of a pool's resolver. Nothing is asked yet.
    pub(super) fn new(
        place: Place,
        pace: Pace,
        service: ServiceName,
        keys: &KubernetesResolver,
        meters: Meters,
        pool: &str,
        tasks: &Tasks,
    ) -> Self {
        let rules = Rules {
            service: service.name.clone(),
            namespace: service.namespace.clone().unwrap_or_default(),
            ports: keys.ports_in_effect().to_vec(),
            hostnames: *keys.return_hostnames,
        };
        Self {
            place,
            pace,
            service,
            timeout: keys.timeout,
            tasks: tasks.clone(),
            meters,
            rules,
            api: None,
            slices: BTreeMap::new(),
            version: None,
            listed_at: None,
            retry: pace.first_retry,
            published: None,
            unready: Unready::default(),
            log: Log::new(pool, &keys.service),
        }
    }

    /// Lists and watches for ever.
    pub(super) async fn run(mut self, publisher: &Publisher) {
        loop {
            let step = match self.version {
                None => self.list(publisher).await,
                Some(_) => self.watch(publisher).await,
            };
            match step {
                Ok(()) => {}
                // A new list is the answer to it, and no failure unless it comes again and again.
                Err(failure @ Failure::Expired { .. }) if self.may_list_at_once() => self.count(&failure),
                Err(failure) => {
                    self.fail(&failure, publisher);
                    sleep(jittered(self.retry)).await;
                    self.retry = (2 * self.retry).min(self.pace.longest_retry);
                }
            }
        }
    }

    /// Lists once and returns the set of backends.
    pub(super) async fn list_once(&mut self) -> Result<Endpoints, Failure> {
        self.slices = self.all_slices().await?;
        let Joined { endpoints, left_out } = join(self.slices.values(), &self.rules);
        if endpoints.is_empty() { Err(Failure::Empty(left_out.to_string())) } else { Ok(endpoints.into()) }
    }

    /// Replaces all slices by a new list.
    async fn list(&mut self, publisher: &Publisher) -> Result<(), Failure> {
        self.listed_at = Some(Instant::now());
        self.slices = self.all_slices().await?;
        self.publish(publisher);
        Ok(())
    }

    /// Follows the changes until the watch ends.
    async fn watch(&mut self, publisher: &Publisher) -> Result<(), Failure> {
        let version = self.version.clone().unwrap_or_default();
        let Pace { watch, grace, .. } = self.pace;
        let mut watch = self.api().await?.watch(&version, watch, grace).await?;
        // An API server that accepts a watch and then ends it has not recovered.
        let mut next = match timeout(self.pace.shortest, watch.next()).await {
            Ok(Ok(None)) => return Err(Failure::ShortWatch),
            Ok(first) => first?,
            Err(_) => {
                self.go_on(publisher);
                watch.next().await?
            }
        };
        while let Some(event) = next {
            self.absorb(event)?;
            // What arrived together is published together.
            while let Some(event) = watch.received()? {
                self.absorb(event)?;
            }
            self.go_on(publisher);
            next = watch.next().await?;
        }
        self.go_on(publisher);
        Ok(())
    }

    /// Publishes what a watch that works has shown.
    fn go_on(&mut self, publisher: &Publisher) {
        self.retry = self.pace.first_retry;
        self.publish(publisher);
    }

    /// Returns all slices, page by page, and remembers the version of the list.
    async fn all_slices(&mut self) -> Result<BTreeMap<String, Slice>, Failure> {
        let (mut slices, mut page) = (BTreeMap::new(), String::new());
        loop {
            let list = self.api().await?.list(&page).await?;
            slices.extend(list.items.into_iter().map(|slice| (slice.metadata.name.clone(), slice)));
            check_count(slices.len())?;
            page = list.metadata.r#continue;
            if page.is_empty() {
                self.version = Some(list.metadata.resource_version);
                return Ok(slices);
            }
        }
    }

    /// Returns the client. The first time and after a failure it is made anew.
    async fn api(&mut self) -> Result<&mut Api, Failure> {
        let api = match self.api.take() {
            Some(api) => api,
            None => Api::new(&self.place, &self.service, self.timeout, &self.tasks).await?,
        };
        if self.rules.namespace != api.namespace() {
            api.namespace().clone_into(&mut self.rules.namespace);
        }
        Ok(self.api.insert(api))
    }

    /// Applies an event to the slices.
    fn absorb(&mut self, event: Event) -> Result<(), Failure> {
        let meta = match event {
            Event::Added(slice) | Event::Modified(slice) => {
                let meta = slice.metadata.clone();
                self.slices.insert(meta.name.clone(), slice);
                check_count(self.slices.len())?;
                meta
            }
            Event::Deleted(slice) => {
                self.slices.remove(&slice.metadata.name);
                slice.metadata
            }
            Event::Bookmark(bookmark) => bookmark.metadata,
            Event::Error(status) => return Err(Failure::of_status(status.code, &status.message)),
        };
        self.version = Some(meta.resource_version);
        Ok(())
    }

    /// Publishes the set of backends if there are any and they are others than before.
    fn publish(&mut self, publisher: &Publisher) {
        let Joined { endpoints, left_out } = join(self.slices.values(), &self.rules);
        self.log.note_left_out(left_out);
        let now = Instant::now();
        let published = self.published.as_deref().unwrap_or_default();
        if endpoints.is_empty() {
            let unready = join_unready(self.slices.values(), &self.rules);
            if let Some(all) = self.unready.joined_to(published, unready, now) {
                publisher.publish(&all);
                self.published = Some(all);
            }
            return self.fail(&Failure::Empty(left_out.to_string()), publisher);
        }
        self.unready.note(published, &endpoints, now);
        self.meters.succeeded();
        self.meters.count_kubernetes(SUCCESS);
        publisher.set_trouble(None);
        self.log.note_good(endpoints.len());
        if self.published.as_deref() != Some(&*endpoints) {
            let endpoints: Arc<[Endpoint]> = endpoints.into();
            publisher.publish(&endpoints);
            self.published = Some(endpoints);
        }
    }

    /// Counts and logs a failure. The set stays as it is.
    fn fail(&mut self, failure: &Failure, publisher: &Publisher) {
        self.count(failure);
        publisher.set_trouble(Some(failure.to_string()));
        let known = self.published.as_deref().map_or(0, <[_]>::len);
        let is_first = self.log.note_failure(failure, known);
        if is_first && known == 0 && publisher.is_next() {
            publisher.warn_of_waiting();
        }
    }

    /// Counts a failure, and forgets what is needed anew after it.
    fn count(&mut self, failure: &Failure) {
        self.meters.count_kubernetes(failure.result());
        match failure {
            // The client works, and the slices are known.
            Failure::Empty(_) | Failure::ShortWatch => {}
            // The client works.
            Failure::Expired { .. } => self.version = None,
            // Something was missed, or the API server does not know the version, as after its store was restored.
            Failure::Unreadable(_) | Failure::TooLarge(_) | Failure::Status { .. } => {
                (self.version, self.api) = (None, None);
            }
            Failure::Config(_) | Failure::Connection(_) | Failure::Timeout | Failure::Denied { .. } => self.api = None,
        }
    }

    fn may_list_at_once(&self) -> bool {
        self.listed_at.is_none_or(|listed_at| listed_at.elapsed() >= self.pace.shortest)
    }
}

fn check_count(slices: usize) -> Result<(), Failure> {
    if slices > MAX_SLICES { Err(Failure::Unreadable(format!("more than {MAX_SLICES} slices"))) } else { Ok(()) }
}
